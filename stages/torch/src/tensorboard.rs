//! TensorBoard's event files: TFRecords of `Event` messages, of which only scalars are written.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use flow_formats::protobuf::{double, float, message, number, text};

/// An event file, open at its end.
#[derive(Debug)]
pub struct EventFile(File);

impl EventFile {
    /// Begins a new file in `dir`: a resumed run has several, and TensorBoard reads them as one.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let seconds = now() as u64;
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "host".into());
        let path = dir.join(format!("events.out.tfevents.{seconds:010}.{}.{}.0", host.trim(), process::id()));
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut events = Self(file);
        // Event.file_version = 3
        events.write(0, &text(3, "brain.Event:2"))?;
        Ok(events)
    }

    /// Adds the values of a step.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values.iter().filter(|(_, value)| value.is_finite()) {
            // Summary.Value: tag = 1, simple_value = 2; Summary.value = 1
            summary.extend(message(1, &[text(1, tag), float(2, *value as f32)].concat()));
        }
        // Event.summary = 5
        self.write(step, &message(5, &summary))
    }

    fn write(&mut self, step: u64, what: &[u8]) -> Result<()> {
        // Event: wall_time = 1, step = 2
        let event = [&double(1, now())[..], &number(2, step), what].concat();
        // A TFRecord: length, its checksum, data, its checksum.
        let length = (event.len() as u64).to_le_bytes();
        let record = [&length[..], &masked(&length).to_le_bytes(), &event, &masked(&event).to_le_bytes()].concat();
        self.0.write_all(&record).context("cannot write TensorBoard's event file")
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// TFRecord's checksum: a CRC-32C that is no CRC of data that holds CRCs.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of `event.proto` and `summary.proto`, byte by byte.
    #[test]
    fn records_have_length_content_and_checksums() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(dir.path()).unwrap();
        events.scalars(300, &[("loss", 1.5), ("nothing", f64::NAN)]).unwrap();
        let path = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let bytes = fs::read(path).unwrap();
        let mut at = 0;
        let mut records = Vec::new();
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            let checksum = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!(checksum(at + 8), masked(&bytes[at..at + 8]));
            let content = &bytes[at + 12..at + 12 + length];
            assert_eq!(checksum(at + 12 + length), masked(content));
            records.push(content.to_vec());
            at += 16 + length;
        }
        assert_eq!(records.len(), 2);
        assert_eq!(records[0][9..], [&[16, 0, 26, 13], &b"brain.Event:2"[..]].concat());
        let value = [&[10, 4], &b"loss"[..], &[21], &1.5f32.to_le_bytes()].concat();
        assert_eq!(records[1][9..], [&[16, 0xac, 2, 42, 13, 10, 11], &value[..]].concat());
    }
}
