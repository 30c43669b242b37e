//! The file of a Weights & Biases run: records of protocol buffers in the blocks of LevelDB's log, as the `wandb` client
//! (0.31) writes it offline and `wandb sync` reads it. Field numbers are those of its `wandb_internal.proto`.

use std::{fs::File, io::Write, path::Path};

use anyhow::{Context as _, Result};
use flow_formats::protobuf::{message, number, text};
use serde_json::Value as Json;

/// `:W&B`, a magic number, version 0.
const HEADER: [u8; 7] = [b':', b'W', b'&', b'B', 0xe1, 0xbe, 0];
/// Records do not cross the borders of blocks: their chunks do not.
const BLOCK: usize = 32 << 10;
/// A chunk's checksum, length and type.
const CHUNK_HEADER: usize = 7;

/// A file of records, open at its end. Every record is in the file when the call returns.
#[derive(Debug)]
pub struct Log {
    file: File,
    written: usize,
    /// Records count from 1.
    records: u64,
    /// Seconds since 1970.
    began: f64,
}

/// What a run is called.
#[derive(Debug)]
pub struct Head<'a> {
    pub id: &'a str,
    pub project: &'a str,
    pub entity: Option<&'a str>,
    pub name: &'a str,
    pub group: Option<&'a str>,
    pub tags: &'a [String],
    pub host: &'a str,
    /// Its parameters: an object.
    pub config: &'a Json,
    /// Seconds since 1970.
    pub began: f64,
}

impl Log {
    /// Begins a file with what the run is called.
    pub fn begin(path: &Path, head: &Head<'_>) -> Result<Self> {
        let file = File::create_new(path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut log = Self { file, written: 0, records: 0, began: head.began };
        log.append(&HEADER)?;
        // The oldest reader that understands this, as the client writes it.
        let versions = [text(1, concat!("flow ", env!("CARGO_PKG_VERSION"))), text(2, "0.70.0")].concat();
        log.record(21, &message(1, &versions))?;
        let mut run = [text(1, head.id), text(3, head.project), message(4, &config(head.config))].concat();
        for (number, value) in [(2, head.entity), (6, head.group), (8, Some(head.name)), (13, Some(head.host))] {
            run.extend(value.map(|value| text(number, value)).unwrap_or_default());
        }
        head.tags.iter().for_each(|tag| run.extend(text(10, tag)));
        run.extend(message(17, &number(1, head.began as u64)));
        // Goes on where a run of that id exists, else begins one.
        run.extend(number(24, 1));
        log.record(17, &run)?;
        Ok(log)
    }

    /// What a step measured at a time (seconds since 1970), and so the newest of each value.
    pub fn history(&mut self, step: u64, time: f64, values: &[(&str, f64)]) -> Result<()> {
        let values = values.iter().map(|(name, value)| (*name, Json::from(*value)));
        let clocks = [("_timestamp", time.into()), ("_runtime", (time - self.began).into()), ("_step", step.into())];
        let item = |(name, value): (&str, Json)| message(1, &[text(2, name), text(16, &value.to_string())].concat());
        let items: Vec<u8> = values.chain(clocks).flat_map(item).collect();
        self.record(3, &items)?;
        self.record(2, &[items, message(2, &number(1, step))].concat())
    }

    /// The end of the run: 0 is well.
    pub fn exit(&mut self, code: u64) -> Result<()> {
        self.record(18, &number(1, code))
    }

    fn record(&mut self, field: u8, content: &[u8]) -> Result<()> {
        self.records += 1;
        self.leveldb(&[number(1, self.records), message(field, content)].concat())
    }

    /// Cuts a record into chunks: whole (1), or its first (2), middle (3) and last (4) part.
    fn leveldb(&mut self, mut record: &[u8]) -> Result<()> {
        let mut first = true;
        loop {
            let left = BLOCK - self.written % BLOCK;
            if left < CHUNK_HEADER {
                self.append(&[0; CHUNK_HEADER][..left])?;
                continue;
            }
            let (chunk, rest) = record.split_at(record.len().min(left - CHUNK_HEADER));
            let kind = match (first, rest.is_empty()) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4,
            };
            let mut checksum = crc32fast::Hasher::new();
            checksum.update(&[kind]);
            checksum.update(chunk);
            let length = u16::try_from(chunk.len())?.to_le_bytes();
            self.append(&[&checksum.finalize().to_le_bytes(), &length[..], &[kind], chunk].concat())?;
            if rest.is_empty() {
                return Ok(());
            }
            (record, first) = (rest, false);
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).context("cannot write the run of Weights & Biases")?;
        self.written += bytes.len();
        Ok(())
    }
}

/// A run's parameters, one at the top level each.
fn config(config: &Json) -> Vec<u8> {
    let items = config.as_object().into_iter().flatten();
    items.flat_map(|(key, value)| message(1, &[text(1, key), text(16, &value.to_string())].concat())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The bytes that the real client read: `tests/golden/wandb/README.md`.
    #[test]
    fn the_file_is_the_one_that_the_client_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run-flow0001.wandb");
        let mut log = Log::begin(
            &path,
            &Head {
                id: "flow0001",
                project: "ja",
                entity: None,
                name: "train",
                group: Some("wiki"),
                tags: &["a".to_owned(), "b".to_owned()],
                host: "host",
                // Longer than a block, so that records are cut.
                config: &json!({"lr": 0.1, "optim": {"betas": [0.9, 0.95]}, "long": "x".repeat(70_000)}),
                began: 1_795_277_228.0,
            },
        )
        .unwrap();
        for step in 1..=400 {
            log.history(step, 1_795_277_228.5 + step as f64, &[("loss", 9.0 / step as f64), ("lr", 0.1)]).unwrap();
        }
        log.exit(0).unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/wandb/digest.txt");
        let bytes = std::fs::read(&path).unwrap();
        if std::env::var_os("FLOW_UPDATE_GOLDEN").is_some() {
            std::fs::write(golden.with_file_name("run-flow0001.wandb"), &bytes).unwrap();
            std::fs::write(&golden, format!("{}\n", blake3::hash(&bytes))).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&golden).unwrap().trim(), blake3::hash(&bytes).to_string());
    }
}
