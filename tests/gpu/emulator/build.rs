//! Compiles the kernels' source for this processor, once for each precision.

use std::path::Path;

fn main() {
    let kernels = Path::new("../../../model/src/device/kernels");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).flag("-U_FORTIFY_SOURCE").include("cpp").include(kernels);
    // Pragmas that only a device's compiler knows, and functions that one precision does not use.
    build.flag_if_supported("-Wno-unknown-pragmas").flag_if_supported("-Wno-unused-function");
    // A device reads numbers at multiples of their size alone: who does not is stopped (SIGILL), and so is who leaves an array of fixed size.
    build.flag("-fsanitize=alignment,bounds").flag("-fsanitize-undefined-trap-on-error");
    build.file("cpp/emulator.cpp").file("cpp/kernels.cpp").compile("kernel_emulator");
    println!("cargo::rerun-if-changed=cpp");
    println!("cargo::rerun-if-changed={}", kernels.display());
}
