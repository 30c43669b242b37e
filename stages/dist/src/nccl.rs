//! [`Nccl`]: the library that joins GPUs. libtorch has it where it has CUDA; its headers need CUDA's, so what calls it is a
//! small library of its own, built by `nccl/build.sh` where these headers are, and loaded by who has GPUs.

use std::{env, ffi::c_void, path::PathBuf};

use anyhow::{Result, bail};

use crate::{
    ffi::OpenNccl,
    runtime::{self, open_library},
};

const LIBRARY: &str = "libflow_nccl.so";

/// NCCL, loaded for the life of the process.
#[derive(Clone, Copy, Debug)]
pub struct Nccl(pub(crate) OpenNccl);

impl Nccl {
    /// Loads the library: `$FLOW_NCCL`, else beside this program. libtorch's GPU half is loaded before it.
    ///
    /// # Errors
    /// It is not there, or was built for another libtorch.
    pub fn load() -> Result<Self> {
        runtime::load_cuda()?;
        let given = env::var_os("FLOW_NCCL").filter(|path| !path.is_empty()).map(PathBuf::from);
        let Some(path) = given.or_else(|| Some(env::current_exe().ok()?.with_file_name(LIBRARY))) else {
            bail!("{LIBRARY} is nowhere");
        };
        if !path.is_file() {
            bail!("there is no {}: stages/dist/nccl/build.sh makes it, FLOW_NCCL says where it is", path.display());
        }
        let handle = open_library(&path.to_string_lossy())?;
        // SAFETY: the handle is of a library that is never closed, and the name ends in NUL.
        let symbol = unsafe { libc::dlsym(handle, c"flow_nccl_open".as_ptr()) };
        if symbol.is_null() {
            bail!("{} is another library: it has no flow_nccl_open", path.display());
        }
        // SAFETY: the symbol is the function of `nccl/nccl.cpp`, whose type the shim knows; here it is only passed on.
        Ok(Self(unsafe { std::mem::transmute::<*mut c_void, OpenNccl>(symbol) }))
    }
}
