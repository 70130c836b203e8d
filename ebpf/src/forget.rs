//! Numbers whose value the kernel's verifier does not know.
//!
//! The verifier follows every way through the program with all the numbers that are known on it, and two ways become one
//! where they know the same. In a loop that keeps the best of what it has seen no two ways know the same, and a loop of
//! sixteen rounds with five outcomes is hundreds of thousands of instructions to follow. What was forgotten is the same on
//! all ways: then every round is followed once.

/// The same number.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
#[must_use]
pub(crate) fn forget(number: u32) -> u32 {
    number
}

/// The same number. It is combined with a 0 that can be seen only by reading it: any arithmetic that comes out as what
/// went in would do today, but kernels learn to see through it, and none sees through memory.
#[cfg(target_arch = "bpf")]
#[inline(always)]
#[must_use]
pub(crate) fn forget(number: u32) -> u32 {
    let mut number = number;
    // SAFETY: nobody writes the cell. It is read each time because the read is volatile. The instruction is written by
    // hand since the compiler would do half of it before the number is known.
    unsafe {
        let nothing = NOTHING.0.get().read_volatile();
        core::arch::asm!("{0} ^= {1}", inout(reg) number, in(reg) nothing, options(pure, nomem, nostack));
    }
    number
}

/// Memory that could be written, so that it is no constant to the verifier either.
#[cfg(target_arch = "bpf")]
struct Nothing(core::cell::UnsafeCell<u32>);

#[cfg(target_arch = "bpf")]
static NOTHING: Nothing = Nothing(core::cell::UnsafeCell::new(0));

// SAFETY: nobody writes it.
#[cfg(target_arch = "bpf")]
unsafe impl Sync for Nothing {}
