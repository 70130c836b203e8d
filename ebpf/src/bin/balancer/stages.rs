//! The stages as global functions: the verifier looks at each once.

use aya_ebpf::bindings::xdp_md;
use tidegate_ebpf::{Stage, balance::run};

use crate::{frame::Frame, maps::Maps};

macro_rules! stages {
    ($($stage:ident $name:ident $dry:ident)*) => {
        $(
            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $name(context: *mut xdp_md, value: u64) -> u64 {
                used(context, value);
                run(&mut Frame(context), &Maps::<false>::new(context), Stage::$stage, value)
            }

            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $dry(context: *mut xdp_md, value: u64) -> u64 {
                used(context, value);
                run(&mut Frame(context), &Maps::<true>::new(context), Stage::$stage, value)
            }
        )*

        #[inline(always)]
        pub(crate) fn call(context: *mut xdp_md, dry: bool, stage: Stage, value: u64) -> u64 {
            match (stage, dry) {
                $(
                    (Stage::$stage, false) => $name(context, value),
                    (Stage::$stage, true) => $dry(context, value),
                )*
            }
        }
    };
}

stages! {
    Unusual unusual dry_unusual
    Any any dry_any
    Refuse refuse dry_refuse
    Out out dry_out
    Back back dry_back
    Requote requote dry_requote
    RequoteBack requote_back dry_requote_back
    Challenge challenge dry_challenge
    Accept accept dry_accept
    Options options dry_options
    Rank rank dry_rank
}

/// The verifier checks every argument that the function's type names; one that is not used the compiler does not pass.
#[inline(always)]
fn used(context: *mut xdp_md, value: u64) {
    // SAFETY: moves of a register to itself. (Not nothing: an empty statement gets a line number and no instruction,
    // which the kernel refuses.)
    unsafe { core::arch::asm!("{0} = {0}", "{1} = {1}", in(reg) context, in(reg) value) };
}
