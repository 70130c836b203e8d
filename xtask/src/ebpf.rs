//! `ebpf`: the XDP programs, compiled by the same compiler as everything else.

use anyhow::bail;

/// Builds the object that the binary `tidegate` embeds.
pub(crate) fn build() -> anyhow::Result<()> {
    bail!("the recipe of the eBPF object is not in this branch")
}
