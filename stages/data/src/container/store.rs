//! Image files that were made of what registries have: once on a machine, beside the work of the cache, where
//! `flow cache gc` finds them when they were not used for long.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use flow_core::{Ctx, Level};

use super::{argv::At, engine::Engine, image::Reference};
use crate::command::{placeholders::quote, process};

/// Between two looks at whether another flow is done with the same image.
const PAUSE: Duration = Duration::from_millis(100);

/// The file of an image for an engine that runs files; made if it is not there.
///
/// # Errors
/// It cannot be had.
pub fn image_file(ctx: &Ctx<'_>, engine: Engine, reference: &Reference, digest: &str) -> Result<At> {
    let name = format!("{}@{digest}", reference.repository());
    // What a job of Slurm's has of pyxis includes enroot; if not, pyxis takes the name.
    let maker = match engine {
        Engine::Pyxis if Engine::Enroot.is_here() => Engine::Enroot,
        other => other,
    };
    let ending = match maker {
        Engine::Apptainer | Engine::Singularity => "sif",
        Engine::Enroot => "sqsh",
        _ => return Ok(At::Name(name)),
    };
    let directory = ctx.scratch.with_file_name("images");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let file = directory.join(format!("{}.{ending}", digest.replace(':', "-")));
    let text =
        |path: &PathBuf| path.to_str().map(str::to_owned).with_context(|| format!("{} is no UTF-8", path.display()));
    let lock = file.with_extension(format!("{ending}.lock"));
    let lock = File::create(&lock).with_context(|| format!("cannot create {}", lock.display()))?;
    while lock.try_lock().is_err() {
        ctx.go_on()?;
        thread::sleep(PAUSE);
    }
    if let Ok(there) = File::open(&file) {
        // As gc sees when it was used last.
        let _ = there.set_modified(SystemTime::now());
        return Ok(At::File(text(&file)?));
    }
    ctx.log(Level::Info, format!("{} makes an image file of {name}", maker.name()));
    let made = file.with_extension(format!("{}.new.{ending}", std::process::id()));
    let _ = fs::remove_file(&made);
    let (made_text, mut env) = (text(&made)?, BTreeMap::new());
    let mut argv: Vec<String> = vec![maker.program().into()];
    match maker {
        Engine::Enroot => {
            if reference.is_here() {
                env.insert("ENROOT_ALLOW_HTTP".to_owned(), "y".to_owned());
            }
            // A digest in the place of a tag is what all versions of it take.
            let from = format!("docker://{}#{}:{digest}", reference.registry, reference.name);
            argv.extend(["import".into(), "--output".into(), made_text, from]);
        }
        _ => {
            argv.extend(["pull".into(), "--disable-cache".into()]);
            argv.extend(reference.is_here().then(|| "--no-https".to_owned()));
            argv.extend([made_text, format!("docker://{name}")]);
        }
    }
    let mut line = String::from("exec");
    for word in &argv {
        line.push(' ');
        quote(word, &mut line);
    }
    let done =
        process::run(ctx, &line, &directory, &env).with_context(|| format!("{} cannot get {name}", maker.name()));
    let done = done.and_then(|()| {
        fs::rename(&made, &file).with_context(|| format!("{} made no {}", maker.name(), made.display()))
    });
    if let Err(error) = done {
        let _ = fs::remove_file(&made);
        return Err(error);
    }
    Ok(At::File(text(&file)?))
}
