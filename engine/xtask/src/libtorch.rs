//! A libtorch to build against: a small directory with `include` and `lib`, as torch-sys takes it in `LIBTORCH`.
//!
//! Only what a program on a CPU needs is kept: `libtorch_cpu.so`, `libc10.so` and what they load. The GPU half is looked
//! for at run time. In order: what `LIBTORCH` names; what an earlier call left in `target/libtorch`; the torch of
//! `python3`, by links; the wheel of the Python package index, without its dependencies (530 MB, some 450 MB of which stay).

use std::{
    env, fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// The version that the pinned tch binds to.
const VERSION: &str = "2.11.0";
/// `libtorch_cpu.so` of the wheel asks the loader for these, although it uses nothing of them without a GPU.
const PACKAGES: [&str; 3] = ["torch==2.11.0", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"];
/// Says what the directory holds; torch-sys compares it with what it wants.
const MARK: &str = "build-version";
/// Where Python's torch is, and which, without importing it: that would take seconds.
const FIND_TORCH: &str = "\
import importlib.util, os, re
spec = importlib.util.find_spec('torch')
if spec and spec.origin:
    home = os.path.dirname(spec.origin)
    text = open(os.path.join(home, 'version.py')).read()
    print(re.search(r\"__version__ *= *'([^']*)'\", text).group(1))
    print(os.path.dirname(home))
";

/// The directory to set `LIBTORCH` to for a build; made if it is not there. Offline when it is.
///
/// # Errors
/// `LIBTORCH` names something else, or the download fails: with what to do.
pub fn ensure() -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    fs::create_dir_all(&target)?;
    let own = fs::canonicalize(&target)?.join("libtorch");
    // `.cargo/config.toml` names our own directory, for plain cargo, where nobody names another.
    if let Some(dir) = env::var_os("LIBTORCH").map(PathBuf::from).filter(|dir| *dir != own) {
        check(&dir).with_context(|| format!("LIBTORCH is {}", dir.display()))?;
        return fs::canonicalize(&dir).with_context(|| format!("cannot find {}", dir.display()));
    }
    ensure_in(&own)
}

/// As [`ensure`], in a directory of the caller's.
fn ensure_in(dir: &Path) -> Result<PathBuf> {
    if check(dir).is_ok() {
        return Ok(dir.to_owned());
    }
    let parent = dir.parent().context("the directory has a parent")?;
    let work = parent.join(format!("libtorch.{}.tmp", process::id()));
    remove(&work)?;
    fs::create_dir_all(work.join("libtorch"))?;
    let made = make(&work).and_then(|()| {
        // Whatever is there is not whole; another process that was faster is.
        if check(dir).is_err() {
            remove(dir)?;
            fs::rename(work.join("libtorch"), dir).with_context(|| format!("cannot name {}", dir.display()))?;
        }
        check(dir)
    });
    remove(&work)?;
    made.map(|()| dir.to_owned())
}

/// Whether a directory can be built against.
fn check(dir: &Path) -> Result<()> {
    for part in ["include/torch/csrc/distributed/c10d/ProcessGroupGloo.hpp", "lib/libtorch_cpu.so", "lib/libc10.so"] {
        ensure!(dir.join(part).is_file(), "it has no {part}");
    }
    match fs::read_to_string(dir.join(MARK)) {
        // libtorch's own archives have a suffix: 2.11.0+cpu.
        Ok(version) => ensure!(
            version.trim().split('+').next() == Some(VERSION),
            "it is libtorch {}, and {VERSION} is needed",
            version.trim()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {MARK}")),
    }
    Ok(())
}

/// Fills `work/libtorch`.
fn make(work: &Path) -> Result<()> {
    let dir = work.join("libtorch");
    if let Some(packages) = python_torch() {
        say(&format!("libtorch {VERSION}: using the torch in {}", packages.display()));
        return lay_out(&packages, &dir, |from, to| symlink(from, to));
    }
    say(&format!("libtorch {VERSION}: downloading torch's wheel (530 MB, once)"));
    let packages = work.join("packages");
    install(&packages, work)?;
    lay_out(&packages, &dir, |from, to| fs::rename(from, to))
}

/// The directory of packages of a `python3` that has the right torch.
fn python_torch() -> Option<PathBuf> {
    let python = if env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
    let output = Command::new(python).args(["-c", FIND_TORCH]).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut lines = text.lines();
    let version = lines.next()?;
    let packages = PathBuf::from(lines.next()?);
    (version.split('+').next() == Some(VERSION) && packages.join("torch/lib/libtorch_cpu.so").is_file())
        .then_some(packages)
}

/// Puts [`PACKAGES`] into a directory by pip. Which Python pip belongs to does not matter: no Python will run them.
fn install(packages: &Path, temporary: &Path) -> Result<()> {
    let machine = env::consts::ARCH;
    let mut arguments: Vec<String> =
        ["install", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--only-binary=:all:"]
            .map(str::to_owned)
            .to_vec();
    arguments.extend(["--implementation", "cp", "--python-version", "3.11", "--abi", "cp311"].map(str::to_owned));
    // pip takes the names of platforms literally: every glibc from that of the oldest wheel to that of torch's.
    for glibc in 17..=28 {
        arguments.extend(["--platform".to_owned(), format!("manylinux_2_{glibc}_{machine}")]);
    }
    arguments.extend(["--target".to_owned(), packages.to_str().context("the path is not UTF-8")?.to_owned()]);
    arguments.extend(PACKAGES.map(str::to_owned));
    let hint = format!(
        "or unpack libtorch {VERSION} (CPU, C++11 ABI) from pytorch.org yourself and set LIBTORCH to its directory"
    );
    let quiet = |program: &str, first: &[&str]| {
        Command::new(program).args(first).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    let pips = [("python3", &["-m", "pip"][..]), ("pip3", &[]), ("pip", &[])];
    let Some((program, first)) =
        pips.into_iter().find(|(program, first)| quiet(program, first).is_ok_and(|status| status.success()))
    else {
        bail!("there is no pip: install it (apt install python3-pip), {hint}");
    };
    // The wheels are unpacked beside their place: /tmp may be small. What pip prints is for people.
    let status = Command::new(program)
        .args(first)
        .args(&arguments)
        .env("TMPDIR", temporary)
        .stdout(io::stderr())
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    ensure!(status.success(), "pip could not install {} (see above): repair that, {hint}", PACKAGES.join(", "));
    Ok(())
}

/// Makes the small directory from a directory of Python packages; `put` moves or links.
fn lay_out(packages: &Path, dir: &Path, put: impl Fn(&Path, &Path) -> io::Result<()>) -> Result<()> {
    let lib = dir.join("lib");
    fs::create_dir_all(&lib)?;
    put(&packages.join("torch/include"), &dir.join("include")).context("the wheel has no include directory")?;
    for (from, wanted) in
        [("torch/lib", None), ("torch.libs", None), ("nvidia/cu13/lib", Some(["libcudart", "libcupti"]))]
    {
        let from = packages.join(from);
        if !from.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&from)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_wanted = match wanted {
                Some(stems) => stems.iter().any(|stem| name.starts_with(stem)),
                None => !["cuda", "python", "nvrtc", "nvshmem", "shm", "global_deps", "libtorch.so"]
                    .iter()
                    .any(|part| name.contains(part)),
            };
            if is_wanted && name.contains(".so") {
                put(&path, &lib.join(name)).with_context(|| format!("cannot take {}", path.display()))?;
            }
        }
    }
    // torch-sys links `torch`, `torch_cpu` and `c10`. The wheel's libtorch.so would bring in the GPU half.
    fs::write(lib.join("libtorch.so"), "INPUT(-ltorch_cpu)\n")?;
    let gomp = fs::read_dir(&lib)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.starts_with("libgomp") && name != "libgomp.so");
    if let Some(gomp) = gomp
        && !lib.join("libgomp.so").exists()
    {
        symlink(gomp, lib.join("libgomp.so"))?;
    }
    fs::write(dir.join(MARK), format!("{VERSION}\n"))?;
    check(dir).context("the torch that was found cannot be built against")
}

fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    }
    .with_context(|| format!("cannot remove {}", path.display()))
}

fn say(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of packages as pip leaves it.
    fn packages(root: &Path) -> PathBuf {
        for name in [
            "torch/include/torch/csrc/distributed/c10d/ProcessGroupGloo.hpp",
            "torch/lib/libtorch_cpu.so",
            "torch/lib/libtorch_cuda.so",
            "torch/lib/libtorch.so",
            "torch/lib/libc10.so",
            "torch/lib/libc10_cuda.so",
            "torch/lib/libgomp.so.1",
            "torch/lib/libtorch_python.so",
            "nvidia/cu13/lib/libcudart.so.13",
            "nvidia/cu13/lib/libcupti.so.13",
            "nvidia/cu13/lib/libnvperf_host.so",
        ] {
            let path = root.join("packages").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        root.join("packages")
    }

    #[test]
    fn only_what_a_cpu_needs_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("libtorch");
        lay_out(&packages(root.path()), &dir, |from, to| fs::rename(from, to)).unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.join("lib"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let wanted = [
            "libc10.so",
            "libcudart.so.13",
            "libcupti.so.13",
            "libgomp.so",
            "libgomp.so.1",
            "libtorch.so",
            "libtorch_cpu.so",
        ];
        assert_eq!(names, wanted);
        assert_eq!(fs::read_to_string(dir.join("lib/libtorch.so")).unwrap(), "INPUT(-ltorch_cpu)\n");
        assert_eq!(fs::read_to_string(dir.join("lib/libgomp.so")).unwrap(), "torch/lib/libgomp.so.1");
        // What is there is taken as it is.
        assert_eq!(ensure_in(&dir).unwrap(), dir);
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("libtorch");
        assert!(check(&dir).is_err());
        lay_out(&packages(root.path()), &dir, |from, to| symlink(from, to)).unwrap();
        check(&dir).unwrap();
        fs::write(dir.join(MARK), "2.9.1+cpu\n").unwrap();
        assert!(check(&dir).unwrap_err().to_string().contains("2.9.1+cpu"));
        fs::write(dir.join(MARK), "2.11.0+cpu\n").unwrap();
        check(&dir).unwrap();
        // The Python that was linked to is gone.
        fs::remove_dir_all(root.path().join("packages/torch/lib")).unwrap();
        assert!(check(&dir).unwrap_err().to_string().contains("libtorch_cpu.so"));
    }
}
