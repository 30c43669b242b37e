//! One small shell beside flow that outlives it: it knows the process groups and the marks of the running commands, and
//! kills what is left of them when flow is gone without a word. The kernel's parent-death signal reaches a command's shell,
//! but not what that shell has started.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    process::{ChildStdin, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use super::family::Family;

/// Reads `+GROUP:MARK:BEGAN` and `-GROUP:MARK:BEGAN`; at the end of its input, which is the end of flow, kills the groups
/// that are left, and whoever has one of their marks and is no older: again while there are any, because they may start
/// others meanwhile.
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
for shell in $shells; do kill -s KILL -- "-${shell%%:*}"; done
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
"#;

/// The way to the guard. It closes when this process ends, however that comes.
static GUARD: Mutex<Option<ChildStdin>> = Mutex::new(None);

/// A shell that the guard knows, as long as this lives.
#[derive(Debug)]
pub struct Guarded(String);

impl Guarded {
    /// Tells the guard of a shell. Without a guard commands run as well; they are only less well cleaned up after.
    pub fn new(group: u32, family: &Family) -> Self {
        let shell = format!("{group}:{}:{}", family.mark().text(), family.began());
        tell('+', &shell);
        Self(shell)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        tell('-', &self.0);
    }
}

fn tell(sign: char, shell: &str) {
    let mut guard = GUARD.lock().unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        let mut command = Command::new("sh");
        command.arg("-c").arg(SCRIPT).process_group(0).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        *guard = command.spawn().ok().and_then(|mut child| child.stdin.take());
    }
    if let Some(stdin) = guard.as_mut()
        && stdin.write_all(format!("{sign}{shell}\n").as_bytes()).is_err()
    {
        *guard = None;
    }
}
