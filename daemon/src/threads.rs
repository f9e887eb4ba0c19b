//! Threads of tensor work.

/// Tells candle and rayon how many threads to use, unless the environment does.
///
/// candle asks for the number at every matrix product, and without these variables it parses /proc/cpuinfo each time; its
/// own second pool (`CANDLE_NUM_THREADS`) would only compete with rayon's.
pub fn set_defaults() {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for (name, value) in [("RAYON_NUM_THREADS", cores), ("CANDLE_NUM_THREADS", 1)] {
        if std::env::var_os(name).is_none() {
            #[allow(unsafe_code, reason = "there is no other way to configure candle")]
            // SAFETY: called first thing in `main`, before any other thread exists that could read the environment.
            unsafe {
                std::env::set_var(name, value.to_string());
            }
        }
    }
}
