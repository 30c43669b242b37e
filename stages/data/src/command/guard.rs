//! One small shell beside flow that outlives it: it knows the process groups of the running commands, and kills what
//! is left of them when flow is gone without a word. The kernel's parent-death signal reaches a command's shell, but
//! not what that shell has started.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    process::{ChildStdin, Command, Stdio},
    sync::{Mutex, PoisonError},
};

/// Reads `+GROUP` and `-GROUP`; at the end of its input, which is the end of flow, kills the groups that are left.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
groups=
while read -r line; do
    group=${line#?}
    case $line in
        +*) groups="$groups $group" ;;
        -*) rest=
            for one in $groups; do [ "$one" = "$group" ] || rest="$rest $one"; done
            groups=$rest ;;
    esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
"#;

/// The way to the guard. It closes when this process ends, however that comes.
static GUARD: Mutex<Option<ChildStdin>> = Mutex::new(None);

/// A process group that the guard knows, as long as this lives.
#[derive(Debug)]
pub struct Guarded(u32);

impl Guarded {
    /// Tells the guard of a group. Without a guard commands run as well; they are only less well cleaned up after.
    pub fn new(group: u32) -> Self {
        tell('+', group);
        Self(group)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        tell('-', self.0);
    }
}

fn tell(sign: char, group: u32) {
    let mut guard = GUARD.lock().unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        let mut command = Command::new("sh");
        command.arg("-c").arg(SCRIPT).process_group(0).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        *guard = command.spawn().ok().and_then(|mut child| child.stdin.take());
    }
    if let Some(stdin) = guard.as_mut()
        && stdin.write_all(format!("{sign}{group}\n").as_bytes()).is_err()
    {
        *guard = None;
    }
}
