//! Compiles the shim against the libtorch that torch-sys found, and tells programs where that libtorch lies.

use std::{env, fs, path::PathBuf};

fn main() {
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch's libraries are"));
    let include = lib.parent().expect("lib/ has a parent").join("include");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        .flag("-fvisibility=hidden")
        .define("USE_C10D_GLOO", None)
        .include(&include)
        .include(include.join("torch/csrc/api/include"));
    if !include.join("gloo/context.h").exists() {
        // The wheel has c10d's headers and not Gloo's.
        build.include("shim/gloo_names");
    }
    for file in ["shim/group.cpp", "shim/transfers.cpp", "shim/autograd.cpp", "shim/attention.cpp", "shim/runtime.cpp"]
    {
        build.file(file);
    }
    build.compile("flow_dist_shim");
    for entry in fs::read_dir("shim").expect("the shim is here").flatten() {
        println!("cargo:rerun-if-changed={}", entry.path().display());
    }
    println!("cargo:libtorch_lib={}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
