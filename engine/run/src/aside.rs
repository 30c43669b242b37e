//! [`Aside`]: what lies in the places of a command's outs while the command makes them anew.
//!
//! What lies there from before must not pass for what the command makes now, and must be there again if it makes
//! nothing. So it is renamed to a dot-file beside it (the one place that is surely on the same file system), and renamed
//! back when the command fails. That it is on its way is noted before: when flow is killed meanwhile, whoever touches
//! the place next puts it back ([`recover`]).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use flow_core::Tree;

use crate::{
    graph::NodeId,
    ledger::{Note, Page},
    place::{Placer, refusal},
};

/// The outs of a node that runs. Dropped before [`Aside::keep`], everything is again as it was.
pub struct Aside<'p> {
    placer: &'p Placer<'p>,
    places: Vec<(Page, PathBuf)>,
}

/// Whether a node's outs can be made now.
pub enum Way<'p> {
    /// What was there lies aside.
    Free(Aside<'p>),
    /// Another flow has this place; nothing was touched.
    Held(PathBuf),
}

impl<'p> Aside<'p> {
    /// Makes way for the outs of a node, unless another flow has one of their places.
    ///
    /// # Errors
    /// A file of the user's is in the way; something cannot be moved.
    pub fn make(placer: &'p Placer<'p>, id: NodeId, overwrite: bool) -> Result<Way<'p>> {
        let node = &placer.project.graph().nodes[id];
        let mut spots: Vec<_> = node.action.outs().iter().map(|out| placer.out_spot(out, Vec::new())).collect();
        spots.sort_by(|a, b| a.page.cmp(&b.page));
        let mut aside = Self { placer, places: Vec::with_capacity(spots.len()) };
        let mut refused = Vec::new();
        for spot in spots {
            let Some(mut page) = placer.ledger.try_hold(&spot.page)? else { return Ok(Way::Held(spot.root)) };
            recover(placer, &mut page, &spot.root)?;
            if !overwrite {
                placer.not_ours(&page.note, "", &spot.root, &mut refused)?;
            }
            page.note.place = spot.place;
            aside.places.push((page, spot.root));
        }
        if !refused.is_empty() {
            bail!(refused.iter().map(|path| refusal(path, &node.name)).collect::<Vec<_>>().join("\n"));
        }
        for (page, root) in aside.places.iter_mut().map(|(page, root)| (page, &*root)) {
            let side = beside(root, "aside");
            // Nobody needs one of a run that ended well and was killed before it removed it.
            remove(&side)?;
            let had = root.symlink_metadata().is_ok();
            page.write(Note { aside: Some(had), ..page.note.clone() })?;
            if had {
                fs::rename(root, &side).with_context(|| format!("cannot move {} aside", root.display()))?;
            }
        }
        Ok(Way::Free(aside))
    }

    /// The node is done: what it made stays, what it did not put in its place itself is put there, and what was there
    /// before goes.
    ///
    /// # Errors
    /// Something cannot be written: then all is as it was before.
    pub fn keep(mut self, id: NodeId, tree: &Tree) -> Result<()> {
        let mut spots = self.placer.out_spots(id, tree)?;
        spots.sort_by(|a, b| a.page.cmp(&b.page));
        for spot in &spots {
            for (name, entry) in &spot.entries {
                if !self.placer.cache.is_placed(entry, &spot.path(name), spot.link)? {
                    self.placer.write(spot, name, entry)?;
                }
            }
        }
        for (spot, (page, root)) in spots.iter().zip(&mut self.places) {
            page.write(spot.note())?;
            if let Err(error) = remove(&beside(root, "aside")) {
                self.placer.warn(format!("{error:#}"));
            }
        }
        Ok(())
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        for (page, root) in self.places.iter_mut().filter(|(page, _)| page.is_unfinished()) {
            if let Err(error) = put_back(page, root, &remove) {
                self.placer.warn(format!("{error:#}"));
            }
        }
    }
}

/// Puts back what a flow that was killed had moved aside. What its command left may as well be the user's by now, and is
/// kept.
///
/// # Errors
/// It cannot be put back.
pub fn recover(placer: &Placer<'_>, page: &mut Page, root: &Path) -> Result<()> {
    if !page.is_unfinished() {
        return Ok(());
    }
    let note = page.note.clone();
    put_back(page, root, &|root| {
        let mut unknown = Vec::new();
        placer.not_ours(&note, "", root, &mut unknown)?;
        if unknown.is_empty() {
            return remove(root);
        }
        let left = beside(root, "left");
        remove(&left)?;
        fs::rename(root, &left).with_context(|| format!("cannot move {} away", root.display()))?;
        placer.warn(format!(
            "flow was killed while {} was made: what was there before is back, what was made of it is {}",
            root.display(),
            left.display()
        ));
        Ok(())
    })
}

/// Puts back what was moved aside; `clear` takes what is there now away.
fn put_back(page: &mut Page, root: &Path, clear: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
    let side = beside(root, "aside");
    let (had, moved) = (page.note.aside == Some(true), side.symlink_metadata().is_ok());
    // Without it, it was not moved yet or is back already, and what is there is what was there.
    if (moved || !had) && root.symlink_metadata().is_ok() {
        clear(root)?;
    }
    if had && moved {
        fs::rename(&side, root).with_context(|| format!("cannot put {} back", root.display()))?;
    }
    page.write(Note { aside: None, ..page.note.clone() })
}

/// The dot-file beside a place.
fn beside(root: &Path, what: &str) -> PathBuf {
    let name = root.file_name().unwrap_or_default().as_encoded_bytes();
    root.with_file_name(format!(".flow-{what}-{}", &blake3::hash(name).to_hex()[..16]))
}

/// Removes a file or a directory with all that is in it, if it is there.
fn remove(path: &Path) -> Result<()> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    let removed = if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
