mod ebpf;
fn main() -> anyhow::Result<()> { ebpf::build() }
