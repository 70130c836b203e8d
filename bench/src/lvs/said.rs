//! What the guest says to the host: lines on its serial console, among those of its kernel.

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// No line of a kernel begins so.
const MARK: &str = "@tidegate ";

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "said", rename_all = "kebab-case")]
pub(super) enum Said {
    /// A fact for the reader.
    Note {
        text: String,
    },
    /// Instructions of one run of the balancer, without those that running an empty program takes.
    Path {
        name: String,
        instructions: i64,
    },
    /// Instructions of a packet from being made to being gone.
    Packet {
        contender: String,
        load: String,
        instructions: i64,
    },
    /// A contender or path that is not there, and why.
    Missing {
        what: String,
        why: String,
    },
    /// Nothing follows.
    Failed {
        why: String,
    },
    Done,
}

impl Said {
    /// Says it to whoever reads the console.
    pub(super) fn say(&self) {
        println!("{MARK}{}", serde_json::to_string(self).expect("it is plain data"));
    }
}

/// Everything that a guest said, if it came to its end.
pub(super) fn listen<'a>(console: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Vec<Said>> {
    let mut all = Vec::new();
    let mut last_lines: Vec<&str> = Vec::new();
    for line in console {
        let Some((_, json)) = line.split_once(MARK) else {
            last_lines.push(line);
            continue;
        };
        let said = serde_json::from_str(json.trim_end())
            .with_context(|| format!("the guest said what is not understood: {json}"))?;
        match said {
            Said::Done => return Ok(all),
            Said::Failed { why } => bail!("in the guest: {why}"),
            said => all.push(said),
        }
    }
    let from = last_lines.len().saturating_sub(30);
    bail!("the guest ended before its work did; its console's last lines:\n  {}", last_lines[from..].join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(instructions: i64) -> Said {
        Said::Path { name: "full NAT, tcp4, new".into(), instructions }
    }

    #[test]
    fn what_is_said_is_heard_among_what_the_kernel_says() {
        let console = format!(
            "[    0.5] Run /init\r\n[    0.6] x{MARK}{}\r\n{MARK}{}\r\nreboot: Restarting\r\n",
            serde_json::to_string(&path(643)).expect("plain data"),
            serde_json::to_string(&Said::Done).expect("plain data"),
        );
        assert_eq!(listen(console.lines()).expect("all is well"), [path(643)]);
    }

    #[test]
    fn a_guest_that_dies_or_complains_is_an_error() {
        let died = format!("{}", listen(["Kernel panic - not syncing"]).expect_err("it died"));
        assert!(died.contains("Kernel panic"), "{died}");
        let line = format!("{MARK}{}", r#"{"said":"failed","why":"no veth"}"#);
        assert_eq!(listen([line.as_str()]).expect_err("it says so").to_string(), "in the guest: no veth");
        assert!(listen([format!("{MARK}nonsense").as_str()]).is_err());
    }
}
