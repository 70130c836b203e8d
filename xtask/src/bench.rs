//! `bench`: builds what is measured, and hands over to the bench, which brings the peers itself.

use std::process::Command;

use anyhow::bail;

use crate::{build, command, ebpf, needs, target_dir};

/// What there is to measure is its first table, which a test of the bench holds to the truth.
const README: &str = include_str!("../../bench/README.md");

/// What runs in a guest of its own: nothing of this machine is touched, so anybody may.
const IN_A_GUEST: [&str; 2] = ["lvs", "budgets"];

/// What follows the bench's name is understood by the bench itself.
pub(crate) fn bench(args: &[&str]) -> anyhow::Result<()> {
    // Said before minutes of building, not after.
    let named = args.first().copied().unwrap_or_default();
    if benches().all(|(name, _)| name != named) {
        let list: String = benches().map(|(name, about)| format!("\n  {name:8} {about}")).collect();
        let said = match named {
            "" => "nothing was named".to_owned(),
            named => format!("no bench is called {named}"),
        };
        bail!("{said}; there are:{list}");
    }
    let guest = IN_A_GUEST.contains(&named);
    if !guest && !command::is_root() {
        bail!("the measurements lay out network namespaces and load eBPF, which needs root: repeat in a root shell");
    }
    let last = if guest { needs::Purpose::Guest } else { needs::Purpose::Lab };
    needs::ensure(&[needs::Purpose::Build, needs::Purpose::Lab, last])?;
    ebpf::build()?;
    build::for_the_lab(&["tidegate-bench", "tidegate", "marathon_standin", "demo_app"])?;
    Err(command::become_program(Command::new(target_dir().join("release/tidegate-bench")).args(args)))
}

/// Names, and what they measure.
fn benches() -> impl Iterator<Item = (&'static str, &'static str)> {
    let rows = README.lines().skip_while(|line| !line.starts_with("| `")).take_while(|line| line.starts_with("| `"));
    rows.filter_map(|line| {
        let mut cells = line.split('|').map(|cell| cell.trim().trim_matches('`')).skip(1);
        Some((cells.next()?, cells.next()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_measured_is_read_from_the_readme() {
        let names: Vec<_> = benches().map(|(name, _)| name).collect();
        assert!(names.contains(&"l4") && names.contains(&"events"), "{names:?}");
        assert!(benches().all(|(name, about)| !name.contains(' ') && about.len() > name.len()), "{names:?}");
    }

    #[test]
    fn an_unknown_bench_is_refused_before_anything_is_built() {
        for (args, said) in [(&["l5"][..], "no bench is called l5"), (&[][..], "nothing was named")] {
            let error = bench(args).expect_err("an unknown bench").to_string();
            assert!(error.starts_with(said) && error.contains("l7 "), "{error}");
        }
    }
}
