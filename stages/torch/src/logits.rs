//! `flow-torch logits MODEL_DIR IDS.json OUT.npy`: the logits of a Hugging Face directory in fp32, to compare them with
//! another implementation's.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use tch::{Device, Kind, Tensor};

use crate::opened::Opened;

/// Writes the logits of the ids in `ids` (a JSON array) as a NumPy array [s, v] of `<f4`.
pub fn logits(model: &Path, ids: &Path, out: &Path) -> Result<()> {
    let text = fs::read_to_string(ids).with_context(|| format!("cannot read {}", ids.display()))?;
    let ids: Vec<i64> = serde_json::from_str(&text).with_context(|| format!("{} is no array of ids", ids.display()))?;
    ensure!(!ids.is_empty(), "there are no ids");
    let Opened { config, model, .. } = Opened::alone(model, Kind::Float, Device::Cpu, ids.len())?;
    if let Some(id) = ids.iter().find(|id| !(0..config.vocab_size as i64).contains(id)) {
        bail!("id {id} is not in the vocabulary of {}", config.vocab_size);
    }
    let logits_sv = model.logits(&Tensor::from_slice(&ids).unsqueeze(0))?.squeeze_dim(0).contiguous();
    let mut bytes = vec![0; ids.len() * config.vocab_size * 4];
    logits_sv.f_copy_data_u8(&mut bytes, ids.len() * config.vocab_size)?;
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", ids.len(), config.vocab_size);
    // Magic, version and length take ten bytes; the whole header is a multiple of 64 and ends in a line feed.
    let padding = 63 - (10 + header.len()) % 64;
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let mut file = File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
    file.write_all(b"\x93NUMPY\x01\x00")?;
    file.write_all(&u16::try_from(header.len())?.to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.write_all(&bytes).with_context(|| format!("cannot write {}", out.display()))
}
