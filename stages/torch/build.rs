//! Lets the program find libtorch where it was linked from, without LD_LIBRARY_PATH (which still wins).

fn main() {
    let lib = std::env::var("DEP_FLOW_DIST_LIBTORCH_LIB").expect("flow-dist says where libtorch's libraries are");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:rerun-if-changed=build.rs");
}
