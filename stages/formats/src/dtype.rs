//! [`DType`]: the type of a tensor's elements, under the names that each format gives it.

use serde::{Deserialize, Serialize};

/// The type of a tensor's elements. All formats here are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// Truth, one byte.
    Bool,
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Signed, 16 bits.
    I16,
    /// IEEE half precision.
    F16,
    /// bfloat16: the upper half of an F32.
    Bf16,
    /// Signed, 32 bits.
    I32,
    /// IEEE single precision.
    F32,
    /// Signed, 64 bits.
    I64,
    /// IEEE double precision.
    F64,
}

/// Type, bytes, safetensors' name, torch's dtype, the stem of torch's storage class.
const NAMES: [(DType, u64, &str, &str, &str); 10] = [
    (DType::Bool, 1, "BOOL", "bool", "Bool"),
    (DType::U8, 1, "U8", "uint8", "Byte"),
    (DType::I8, 1, "I8", "int8", "Char"),
    (DType::I16, 2, "I16", "int16", "Short"),
    (DType::F16, 2, "F16", "float16", "Half"),
    (DType::Bf16, 2, "BF16", "bfloat16", "BFloat16"),
    (DType::I32, 4, "I32", "int32", "Int"),
    (DType::F32, 4, "F32", "float32", "Float"),
    (DType::I64, 8, "I64", "int64", "Long"),
    (DType::F64, 8, "F64", "float64", "Double"),
];

impl DType {
    fn row(self) -> &'static (DType, u64, &'static str, &'static str, &'static str) {
        &NAMES[self as usize]
    }

    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> u64 {
        self.row().1
    }

    /// The name in a safetensors header: `BF16`.
    #[must_use]
    pub fn safetensors(self) -> &'static str {
        self.row().2
    }

    /// The name in torch, without `torch.`: `bfloat16`.
    #[must_use]
    pub fn torch(self) -> &'static str {
        self.row().3
    }

    /// The class of a typed storage in torch's pickles, without `torch.`: `BFloat16Storage`.
    #[must_use]
    pub fn storage(self) -> String {
        format!("{}Storage", self.row().4)
    }

    /// From the name in a safetensors header.
    #[must_use]
    pub fn from_safetensors(name: &str) -> Option<Self> {
        NAMES.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// From the name in torch, with or without `torch.`.
    #[must_use]
    pub fn from_torch(name: &str) -> Option<Self> {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        NAMES.iter().find(|row| row.3 == name).map(|row| row.0)
    }

    /// From the class of a typed storage, without `torch.`.
    #[must_use]
    pub fn from_storage(class: &str) -> Option<Self> {
        let stem = class.strip_suffix("Storage")?;
        NAMES.iter().find(|row| row.4 == stem).map(|row| row.0)
    }
}

/// Bytes of a tensor of this shape; `None` when they are more than a 63-bit number of bytes.
#[must_use]
pub fn byte_len(dtype: DType, shape: &[u64]) -> Option<u64> {
    shape
        .iter()
        .try_fold(dtype.size(), |product, &axis| product.checked_mul(axis))
        .filter(|&bytes| i64::try_from(bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back() {
        for (i, row) in NAMES.iter().enumerate() {
            assert_eq!(row.0 as usize, i, "the table is in the order of the enum");
            assert_eq!(DType::from_safetensors(row.0.safetensors()), Some(row.0));
            assert_eq!(DType::from_torch(&format!("torch.{}", row.0.torch())), Some(row.0));
            assert_eq!(DType::from_storage(&row.0.storage()), Some(row.0));
        }
        assert_eq!(DType::from_safetensors("F8_E4M3"), None);
    }

    #[test]
    fn lengths_do_not_overflow() {
        assert_eq!(byte_len(DType::Bf16, &[3, 5]), Some(30));
        assert_eq!(byte_len(DType::F32, &[]), Some(4));
        assert_eq!(byte_len(DType::F64, &[1 << 32, 1 << 32]), None);
        assert_eq!(byte_len(DType::U8, &[1 << 63]), None);
    }
}
