//! One small shell beside flow that outlives it: it knows the process groups and the marks of the running commands, and
//! kills what is left of them when flow is gone without a word. The kernel's parent-death signal reaches a command's shell,
//! but not what that shell has started.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use super::{
    family::{self, Family, Mark},
    orphans::{self, Note},
};

/// Reads `+GROUP:MARK:BEGAN` and `-GROUP:MARK:BEGAN`, without a group for a shell that is about to begin; at the end of
/// its input, which is the end of flow, kills the groups that are left, and whoever has one of their marks and is no
/// older: again while there are any, because they may start others meanwhile. When that is done, its note is removed.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
shells=
while read -r line; do
    shell=${line#?}
    case $line in
        +*) shells="$shells $shell" ;;
        -*) rest=
            for one in $shells; do [ "$one" = "$shell" ] || rest="$rest $one"; done
            shells=$rest ;;
    esac
done
sweep() {
    for shell in $shells; do
        case $shell in [1-9]*) kill -s KILL -- "-${shell%%:*}" ;; esac
    done
    for round in 1 2 3 4 5; do
        killed=
        for place in $(cd /proc && grep -lsz '^FLOW_COMMAND_MARK=' [0-9]*/environ); do
            id=${place%/environ}
            marks=$(tr '\0' '\n' < "/proc/$id/environ" | sed -n 's/^FLOW_COMMAND_MARK=//p')
            read -r stat < "/proc/$id/stat" || continue
            # Behind the name, which may be anything, the 20th field says when it began.
            set -- ${stat##*) }
            for shell in $shells; do
                shell=${shell#*:}
                case ":$marks:" in
                    *:"${shell%:*}":*) [ "${20}" -lt "${shell#*:}" ] || { kill -s KILL "$id" && killed=1; } ;;
                esac
            done
        done
        [ "$killed" ] || break
    done
}
[ ! "$shells" ] || sweep
[ $# = 0 ] || exec rm -f -- "$1" > /dev/null
"#;

/// The ways to the guards, one for each directory of notes: one cache has one. They close when this process ends, however
/// that comes.
static GUARDS: Mutex<BTreeMap<PathBuf, ChildStdin>> = Mutex::new(BTreeMap::new());

/// A shell that the guard knows, as long as this lives.
#[derive(Debug)]
pub struct Guarded {
    notes: PathBuf,
    /// As the guard was told.
    shells: Vec<String>,
}

impl Guarded {
    /// Tells the guard of a shell that is about to begin in this directory: what it starts may run before its number is
    /// known here. Without a guard commands run as well; they are only less well cleaned up after.
    pub fn expect(mark: &Mark, scratch: &Path) -> Self {
        let mut this = Self { notes: orphans::directory(scratch), shells: Vec::new() };
        this.tell(format!(":{}:{}", mark.text(), family::now()));
        this
    }

    /// Tells it of the shell itself, and so of its group.
    pub fn began(&mut self, group: u32, family: &Family) {
        self.tell(format!("{group}:{}:{}", family.mark().text(), family.began()));
    }

    fn tell(&mut self, shell: String) {
        tell(&self.notes, &format!("+{shell}\n"));
        self.shells.push(shell);
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        tell(&self.notes, &self.shells.iter().map(|shell| format!("-{shell}\n")).collect::<String>());
    }
}

fn tell(notes: &Path, lines: &str) {
    let mut guards = GUARDS.lock().unwrap_or_else(PoisonError::into_inner);
    if !guards.contains_key(notes)
        && let Ok(guard) = start(notes)
    {
        guards.insert(notes.to_owned(), guard);
    }
    if let Some(stdin) = guards.get_mut(notes)
        && stdin.write_all(lines.as_bytes()).is_err()
    {
        guards.remove(notes);
    }
}

/// Starts a guard, and writes it down before it knows of anything to end.
fn start(notes: &Path) -> io::Result<ChildStdin> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(SCRIPT).process_group(0).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // Where none can be made, the next run is not told to wait; what is left is ended all the same.
    let mut note = Note::new(notes).ok();
    if let Some(note) = &note {
        command.arg("sh").arg(&note.path).stdout(note.file.try_clone()?);
    }
    let mut child = command.spawn()?;
    if let Some(note) = &mut note {
        let _ = note.write(child.id());
    }
    child.stdin.take().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
}
