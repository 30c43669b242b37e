//! Files of this machine.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use flow_core::{Ctx, Input, Unit};

use super::Filter;

/// So much is copied between two looks at whether to stop.
const STRETCH: u64 = 64 << 20;

/// Copies the files of an input that the filter takes, and tells their names.
///
/// # Errors
/// It takes none, or copying failed.
pub fn copy(ctx: &Ctx<'_>, input: &Input, filter: &Filter) -> Result<Vec<String>> {
    let files: Vec<_> = input.files().into_iter().filter(|(name, _)| filter.takes(name)).collect();
    ensure!(!files.is_empty(), "nothing in {} matches", input.name);
    let total = files.iter().filter_map(|(name, _)| input.tree.get(name)).map(|entry| entry.size).sum();
    let mut done = 0;
    for (name, path) in &files {
        copy_file(path, &ctx.out.join(name), |bytes| {
            done += bytes;
            ctx.progress(done, Some(total), Unit::Bytes);
            Ok(ctx.go_on()?)
        })?;
    }
    Ok(files.into_iter().map(|(name, _)| name.to_owned()).collect())
}

/// Whether there is a file below a directory that the filter takes. Reads names alone, and only as many as it takes to know; a
/// directory that cannot be read is told by who reads it.
pub fn has_any(directory: &Path, filter: &Filter) -> bool {
    fn look(directory: &Path, prefix: &str, filter: &Filter) -> bool {
        let Ok(entries) = std::fs::read_dir(directory) else { return true };
        entries.map_while(Result::ok).any(|entry| {
            let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else { return true };
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => look(&entry.path(), &format!("{name}/"), filter),
                Ok(kind) if kind.is_file() => filter.takes(&name),
                // Where a link leads is not looked into.
                _ => true,
            }
        })
    }
    look(directory, "", filter)
}

/// Copies a file with its permissions; a file system that can share the blocks does. `step` hears of the bytes as
/// they are copied, and may stop it.
///
/// # Errors
/// Copying failed, or `step` does.
pub fn copy_file(from: &Path, to: &Path, mut step: impl FnMut(u64) -> Result<()>) -> Result<()> {
    let cannot = || format!("cannot copy {} to {}", from.display(), to.display());
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).with_context(cannot)?;
    }
    let source = File::open(from).with_context(cannot)?;
    let mut target = File::create_new(to).with_context(cannot)?;
    loop {
        // Between two files the standard library asks the kernel to copy, which makes a reflink where it can.
        let n = io::copy(&mut (&source).take(STRETCH), &mut target).with_context(cannot)?;
        if n == 0 {
            break;
        }
        step(n)?;
    }
    target.set_permissions(source.metadata().with_context(cannot)?.permissions()).with_context(cannot)
}
