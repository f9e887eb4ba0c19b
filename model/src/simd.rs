//! Which vector instructions this machine has, found once at run time: one program serves every x86-64 (AVX-512, AVX2, or
//! neither) and every aarch64.

use std::sync::LazyLock;

/// The widest instructions of this machine that the program knows.
pub(crate) static ARCH: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);

/// Runs `kernel` compiled for this machine's vector instructions. The kernel and what it calls must be inlined to profit: a closure
/// needs `#[inline(always)]`, or it may be compiled for the oldest machine, several times slower.
#[inline(always)]
pub fn vectorised<R>(kernel: impl FnOnce() -> R) -> R {
    ARCH.dispatch(kernel)
}

/// Asks for values that will be needed soon, to have them near the core by then.
pub fn fetch(values: &[f32]) {
    const LINE: usize = 16; // values
    values.iter().step_by(LINE).for_each(|value| prefetch(value));
}

/// Asks for the cache line at `from`, which may be anywhere: nothing is read that the program sees.
#[inline(always)]
#[allow(unsafe_code)]
pub(crate) fn prefetch(from: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, and every x86-64 has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(from.cast());
    }
    // Elsewhere there is no stable way; the machine's own prefetching has to do.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

/// All instructions that this machine can run.
#[cfg(test)]
pub(crate) fn archs() -> Vec<pulp::Arch> {
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
    let mut archs = vec![*ARCH, pulp::Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    archs.extend(pulp::x86::V3::try_new().map(pulp::Arch::V3));
    archs
}

/// Whether a multiply-add of these instructions is rounded once.
#[cfg(test)]
pub(crate) fn fuses(arch: pulp::Arch) -> bool {
    !matches!(arch, pulp::Arch::Scalar)
}
