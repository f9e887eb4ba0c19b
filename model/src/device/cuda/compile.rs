//! From the kernels' source to machine code, by NVRTC. Needs no GPU.

use super::super::{KERNELS, Precision};
use super::cache::Cache;
use super::lock;
use cudarc::nvrtc::result as nvrtc;
use cudarc::nvrtc::sys;
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

/// Architectures that the kernels are compiled for: Ampere, Ada, Hopper, Blackwell.
pub const ARCHITECTURES: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"];

type Compiled = HashMap<(&'static str, &'static str), Arc<Vec<u8>>>;

/// The kernels for `precision`, as machine code of `architecture`: what is in memory or on disk, or compiled anew. All that open a GPU of one kind share it.
///
/// # Errors
/// That NVRTC is not there, or what it says.
pub(super) fn compiled(precision: Precision, architecture: &'static str) -> Result<Arc<Vec<u8>>, String> {
    static COMPILED: OnceLock<Mutex<Compiled>> = OnceLock::new();
    let mut compiled = lock(COMPILED.get_or_init(Mutex::default));
    if let Some(code) = compiled.get(&(precision.name(), architecture)) {
        return Ok(Arc::clone(code));
    }
    let kind = format!("{architecture}-{}", precision.name());
    let recipe = [source(), options(precision, architecture).join(" "), version()?].join("\n");
    let cache = Cache::of_user();
    let code = match cache.as_ref().and_then(|cache| cache.load(&kind, recipe.as_bytes())) {
        Some(code) => code,
        None => {
            let start = Instant::now();
            let code = compile(precision, architecture)?;
            let (precision, seconds) = (precision.name(), start.elapsed().as_secs_f64());
            tracing::info!(precision, architecture, seconds, "kernels compiled");
            cache.iter().for_each(|cache| cache.keep(&kind, recipe.as_bytes(), &code));
            code
        }
    };
    let code = Arc::new(code);
    compiled.insert((precision.name(), architecture), Arc::clone(&code));
    Ok(code)
}

fn source() -> String {
    KERNELS.map(|(_, text)| text).join("\n")
}

fn options(precision: Precision, architecture: &str) -> [String; 4] {
    let number = match precision {
        Precision::F32 => 0,
        Precision::Bf16 => 1,
        Precision::F16 => 2,
    };
    [
        format!("--gpu-architecture={architecture}"),
        format!("-DREAL={number}"),
        "-std=c++17".to_owned(),
        "-default-device".to_owned(),
    ]
}

/// NVRTC's.
fn version() -> Result<String, String> {
    is_there()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: it writes two numbers.
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result().map_err(|error| error.to_string())?;
    Ok(format!("{major}.{minor}"))
}

fn is_there() -> Result<(), String> {
    // SAFETY: it only looks for a library.
    match unsafe { sys::is_culib_present() } {
        true => Ok(()),
        false => Err(format!("libnvrtc.so is not found; {}", super::ADVICE)),
    }
}

/// Compiles the kernels.
///
/// # Errors
/// That NVRTC is not there, or what it says.
pub fn compile(precision: Precision, architecture: &str) -> Result<Vec<u8>, String> {
    is_there()?;
    let source = CString::new(source()).map_err(|error| error.to_string())?;
    let failed = |error: nvrtc::NvrtcError| format!("kernels cannot be compiled for {architecture}: {error}");
    let options = options(precision, architecture);
    let program = nvrtc::create_program(&source, Some(c"kernels.cu")).map_err(failed)?;
    // SAFETY: the program was just created, and `source` is there until it is destroyed.
    unsafe {
        let code = nvrtc::compile_program(program, &options)
            .map_err(|error| {
                let log = nvrtc::get_program_log(program).unwrap_or_default();
                let log: Vec<u8> = log.into_iter().map(|byte| byte as u8).filter(|byte| *byte != 0).collect();
                format!("{}\n{}", failed(error), String::from_utf8_lossy(&log))
            })
            .and_then(|()| {
                let mut size = 0;
                sys::nvrtcGetCUBINSize(program, &raw mut size).result().map_err(failed)?;
                let mut code = vec![0_u8; size];
                sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result().map_err(failed)?;
                Ok(code)
            });
        nvrtc::destroy_program(program).map_err(failed)?;
        code
    }
}
