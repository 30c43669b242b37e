//! [`Home`]: where an iteration's files lie. In a directory; or, as NeMo 1 hands a model around, in a `.nemo`: a tar archive
//! that holds one beside the tokenizer and NeMo's own config. Members lie in it as they are, so boxes are read in place.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{METADATA, legacy, metadata::Place};
use crate::compressed::{Compression, Decoder};

/// Where the files of an iteration lie.
#[derive(Debug)]
pub(super) enum Home {
    /// In this directory.
    Dir(PathBuf),
    /// In this archive: the first byte and the length of each, by its name in the iteration.
    Archive(PathBuf, BTreeMap<String, (u64, u64)>),
}

impl Home {
    /// Looks at a directory or an archive.
    ///
    /// # Errors
    /// It is a file and no archive of an iteration: with what it is instead, if that can be told.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return Ok(Self::Dir(path.to_owned()));
        }
        let compression = Decoder::open(path)?.compression();
        ensure!(
            compression == Compression::None,
            "{} is compressed, and is read in many places at once: a stage of `kind = \"gunzip\"` in front makes the \
             archive of it that it was",
            path.display()
        );
        let members = iteration(path).with_context(|| format!("cannot use {} as a `.nemo`", path.display()))?;
        Ok(Self::Archive(path.to_owned(), members))
    }

    /// The path, for messages.
    pub fn path(&self) -> &Path {
        match self {
            Self::Dir(path) | Self::Archive(path, _) => path,
        }
    }

    /// Whether the files are those of Megatron-LM's older format.
    pub fn is_legacy(&self) -> bool {
        matches!(self, Self::Dir(dir) if legacy::is_legacy(dir))
    }

    /// The file that holds this one of the iteration, and which of its bytes are it. None: there is none.
    pub fn find(&self, name: &str) -> Result<Option<(PathBuf, u64, u64)>> {
        match self {
            Self::Dir(dir) => {
                let path = dir.join(name);
                match fs::metadata(&path) {
                    Ok(found) => Ok(Some((path, 0, found.len()))),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
                }
            }
            Self::Archive(path, members) => Ok(members.get(name).map(|&(at, len)| (path.clone(), at, len))),
        }
    }

    /// Counts a record's place from the beginning of the file that holds it, from where its own file begins.
    ///
    /// # Errors
    /// In an archive: there is no such file, or it ends before the record does.
    pub fn settle(&self, place: &mut Place) -> Result<()> {
        let Self::Archive(path, members) = self else { return Ok(()) };
        let (at, len) =
            members.get(&place.file).with_context(|| format!("{} has no {}", path.display(), place.file))?;
        let end = place.at.checked_add(place.len);
        ensure!(
            end.is_some_and(|end| end <= *len),
            "{} ends before byte {} of {}",
            path.display(),
            place.at.saturating_add(place.len),
            place.file
        );
        place.at += at;
        Ok(())
    }
}

/// The files of the iteration in an archive.
fn iteration(path: &Path) -> Result<BTreeMap<String, (u64, u64)>> {
    let file = File::open(path)?;
    let all = file.metadata()?.len();
    let mut members = BTreeMap::new();
    for entry in tar::Archive::new(file).entries_with_seek()? {
        // What `tar` says of a header that is none has the header's bytes in it.
        let entry = entry.map_err(|error| match error.raw_os_error() {
            Some(_) => anyhow::Error::new(error),
            None if members.is_empty() => anyhow!("it is no tar archive"),
            None => anyhow!("it is a damaged tar archive: the {} files before are whole", members.len()),
        })?;
        let kind = entry.header().entry_type();
        let Ok(name) = String::from_utf8(entry.path_bytes().into_owned()) else { continue };
        if !(kind.is_file() || kind.is_contiguous()) {
            continue;
        }
        let (at, len) = (entry.raw_file_position(), entry.size());
        ensure!(at.checked_add(len).is_some_and(|end| end <= all), "it was cut off: `{name}` ends behind its end");
        members.insert(name.trim_start_matches("./").to_owned(), (at, len));
    }
    let tables = members.keys().filter_map(|name| name.strip_suffix(METADATA));
    let mut below: Vec<&str> = tables.filter(|below| below.is_empty() || below.ends_with('/')).collect();
    below.sort_by_key(|below| below.len());
    let below = match below[..] {
        [] => bail!("{}", without_table(members.keys().map(String::as_str))),
        [below] => below.to_owned(),
        [first, second, ..] => {
            ensure!(first.len() < second.len(), "it holds several checkpoints: {first} and {second}");
            first.to_owned()
        }
    };
    let inside = members.into_iter().filter_map(|(name, place)| Some((name.strip_prefix(&below)?.to_owned(), place)));
    Ok(inside.collect())
}

/// Why files without a [`METADATA`] among them are no checkpoint that is read here.
pub(super) fn without_table<'a>(mut names: impl Iterator<Item = &'a str> + Clone) -> String {
    if names.clone().any(|name| name.ends_with(".zarray")) {
        return "its tensors are in zarr's format, which Megatron has given up: load and save it there once with \
                `torch_dist`"
            .to_owned();
    }
    if names.any(|name| name.ends_with(".ckpt")) {
        return "its weights are one pickle (`.ckpt`), as NeMo kept them before distributed checkpoints: load and save it \
                there once"
            .to_owned();
    }
    format!("it has no {METADATA}")
}
