//! From one floating-point type to another, rounding to nearest, ties to even.

use anyhow::{Result, bail};
use flow_formats::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A type that weights may be asked for in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE single.
    Fp32,
    /// IEEE half.
    Fp16,
    /// The upper half of a single.
    Bf16,
}

impl Dtype {
    /// The type of elements.
    #[must_use]
    pub fn of(self) -> DType {
        match self {
            Self::Fp32 => DType::F32,
            Self::Fp16 => DType::F16,
            Self::Bf16 => DType::Bf16,
        }
    }
}

/// Converts little-endian elements. `to` has room for as many as `from` has.
///
/// # Errors
/// One of the types is not fp32, fp16 or bf16.
pub fn cast(from: &[u8], from_type: DType, to: &mut [u8], to_type: DType) -> Result<()> {
    if from_type == to_type {
        to.copy_from_slice(from);
        return Ok(());
    }
    let read = match from_type {
        DType::F32 => each::<4>(from, f32::from_le_bytes),
        DType::Bf16 => each::<2>(from, |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)),
        DType::F16 => each::<2>(from, |bytes| from_half(u16::from_le_bytes(bytes))),
        other => bail!("{} cannot be cast to {}", other.torch(), to_type.torch()),
    };
    match to_type {
        DType::F32 => put::<4>(read, to, f32::to_le_bytes),
        DType::Bf16 => put::<2>(read, to, |value| to_bf16(value).to_le_bytes()),
        DType::F16 => put::<2>(read, to, |value| to_half(value).to_le_bytes()),
        other => bail!("{} cannot be cast to {}", from_type.torch(), other.torch()),
    }
    Ok(())
}

fn each<const N: usize>(bytes: &[u8], read: fn([u8; N]) -> f32) -> Box<dyn Iterator<Item = f32> + '_> {
    Box::new(bytes.as_chunks::<N>().0.iter().map(move |&element| read(element)))
}

fn put<const N: usize>(values: impl Iterator<Item = f32>, to: &mut [u8], write: fn(f32) -> [u8; N]) {
    for (element, value) in to.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *element = write(value);
    }
}

/// As bfloat16: the upper half, rounded to nearest even; a NaN stays one.
#[must_use]
pub fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// IEEE half: 5 bits of exponent, 10 of fraction.
fn to_half(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let (exponent, fraction) = ((bits >> 23 & 0xff) as i32 - 127, bits & 0x7f_ffff);
    // How many low bits of the 24-bit significand fall away, and what exponent is left.
    let (drop, base) = match exponent {
        128 if fraction != 0 => return sign | 0x7e00 | (fraction >> 13) as u16,
        16.. => return sign | 0x7c00,
        -14..16 => (13, (exponent + 14) as u32),
        -25..-14 => (13 + (-14 - exponent) as u32, 0),
        _ => return sign,
    };
    let significand = fraction | 0x80_0000;
    let kept = significand >> drop;
    let rest = significand & ((1 << drop) - 1);
    let half = 1 << (drop - 1);
    let round = u32::from(rest > half || rest == half && kept & 1 == 1);
    // A carry out of the fraction goes into the exponent, up to infinity, as it should. The significand's own leading
    // one adds the last 1 to a normal number's exponent.
    sign | ((base << 10) + kept + round) as u16
}

fn from_half(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let (exponent, fraction) = (u32::from(half >> 10 & 0x1f), u32::from(half & 0x3ff));
    let magnitude = match exponent {
        // A subnormal is its fraction in units of 2⁻²⁴, which is exact in f32.
        0 => (fraction as f32 / 16_777_216.0).to_bits(),
        31 => 0x7f80_0000 | fraction << 13,
        _ => (exponent + 112) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_and_bfloat_survives_the_way_through_f32() {
        for bits in 0..=u16::MAX {
            for dtype in [DType::F16, DType::Bf16] {
                let (mut wide, mut back) = ([0; 4], [0; 2]);
                cast(&bits.to_le_bytes(), dtype, &mut wide, DType::F32).unwrap();
                cast(&wide, DType::F32, &mut back, dtype).unwrap();
                if f32::from_le_bytes(wide).is_nan() {
                    cast(&back, dtype, &mut wide, DType::F32).unwrap();
                    assert!(f32::from_le_bytes(wide).is_nan(), "{bits:04x}");
                } else {
                    assert_eq!(u16::from_le_bytes(back), bits, "{dtype:?}");
                }
            }
        }
    }

    /// Against the definition: of all halves (or bfloats), the nearest; of two, the even one.
    #[test]
    fn rounding_is_to_nearest_even() {
        let decode = |bits: u16, dtype| {
            let mut wide = [0; 4];
            cast(&bits.to_le_bytes(), dtype, &mut wide, DType::F32).unwrap();
            f64::from(f32::from_le_bytes(wide))
        };
        for (dtype, last) in [(DType::F16, 0x7bffu16), (DType::Bf16, 0x7f7f)] {
            for bits in (0..last).step_by(7).chain([0, 1, 2, 0x3ff, 0x400, last - 1]) {
                let (low, high) = (decode(bits, dtype), decode(bits + 1, dtype));
                for (weight, want) in [(0.25, bits), (0.5, bits + (bits & 1)), (0.75, bits + 1)] {
                    let value = (low + (high - low) * weight) as f32;
                    if f64::from(value) != low + (high - low) * weight {
                        continue; // not a float: bfloat's subnormals
                    }
                    for (value, sign) in [(value, 0), (-value, 0x8000)] {
                        let mut out = [0; 2];
                        cast(&value.to_le_bytes(), DType::F32, &mut out, dtype).unwrap();
                        assert_eq!(u16::from_le_bytes(out), want | sign, "{dtype:?} {value:e}");
                    }
                }
            }
        }
        assert_eq!(to_half(65520.0), 0x7c00, "halfway to what would be next is infinity");
        assert_eq!(to_half(65519.0), 0x7bff);
        assert_eq!(to_half(f32::MIN_POSITIVE), 0);
        assert_eq!(to_bf16(f32::MAX), 0x7f80);
        assert!(cast(&[0; 8], DType::I64, &mut [0; 4], DType::F32).is_err());
    }
}
