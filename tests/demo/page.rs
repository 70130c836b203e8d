//! What to type next: every line can be copied into another root shell.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use anyhow::bail;
use tidegate_tests::{appliance::binary, cluster::Cluster};

use super::{HOST, RUN, shell, tidegate::Tidegate};

pub(crate) struct Page {
    sections: Vec<(&'static str, Vec<Line>)>,
    api: String,
}

/// A command, and what it must print; `None`: it does not end by itself.
struct Line {
    command: String,
    prints: Option<&'static str>,
}

impl Page {
    pub(crate) fn new(cluster: &Cluster, layer4: &[IpAddr], layer7: &[IpAddr], tidegate: &Tidegate) -> Self {
        let client = |command: String, prints| line(format!("ip netns exec tg-client {command}"), prints);
        let (dns, marathon) = (cluster.appliance.v4, cluster.marathon.v4);
        let program = binary("tidegate");
        let program = program.display();
        let own = |words: &str| line(format!("{program} {words} --api http://{}", tidegate.api), "demo");
        let vip4 = url(layer4[0]);
        let scale = |n: u32| {
            // Forced: who types fast would be refused while the last deployment still goes on.
            let body = format!("-H 'Content-Type: application/json' -d '{{\"instances\":{n}}}'");
            client(format!("curl -s -X PUT {body} 'http://{marathon}:8080/v2/apps/demo?force=true'"), "deploymentId")
        };
        let ask = |what: &str| client(format!("dig +noall +answer @{dns} {what}"), "IN");
        let sections = vec![
            ("Through the layer-4 VIP (again and again: each answer says which instance it is from)", {
                layer4.iter().map(|vip| client(format!("curl -sg {}", url(*vip)), WHO)).collect()
            }),
            ("Through layer 7, by host name", {
                let mut lines: Vec<Line> =
                    layer7.iter().map(|vip| client(format!("curl -sg -H 'Host: {HOST}' {}", url(*vip)), WHO)).collect();
                lines.push(client(format!("curl -s --resolve {HOST}:80:{} http://{HOST}/", layer7[0]), WHO));
                lines
            }),
            ("By DNS: the job's instances, their ports, the ELBs", {
                let names = [
                    "demo.marathon.mesos A",
                    "_demo._tcp.marathon.mesos SRV",
                    "demo-l4.elb.mesos A",
                    "demo-l7.elb.mesos AAAA",
                ];
                names.into_iter().map(ask).collect()
            }),
            (
                "Watch, and scale the job up and down meanwhile from a third shell",
                vec![
                    Line {
                        command: format!(
                            "while sleep 0.2; do ip netns exec tg-client curl -s -m 5 {vip4} || echo LOST; echo; done"
                        ),
                        prints: None,
                    },
                    scale(10),
                    scale(2),
                    scale(3),
                ],
            ),
            (
                "What Tidegate knows",
                vec![
                    line(format!("{program} status --api http://{}", tidegate.api), "up to date"),
                    own("elb list"),
                    own("elb show demo-l4"),
                    own("elb show demo-l7"),
                ],
            ),
            ("What layer 4 does with a client's packets, and why", {
                let inside = |words: &str, prints| Line {
                    command: format!("nsenter -t $(cat {RUN}/tidegate.pid) -n -m {program} l4 {words}"),
                    prints,
                };
                let mut lines: Vec<Line> = layer4
                    .iter()
                    .map(|vip| {
                        let client = if vip.is_ipv4() { cluster.client.v4.into() } else { cluster.client.v6.into() };
                        let (client, vip) = (SocketAddr::new(client, 40_000), SocketAddr::new(*vip, 80));
                        inside(&format!("explain '{client}' '{vip}'"), Some("forwarded"))
                    })
                    .collect();
                lines.push(inside("flows", Some("flows of fullnat")));
                lines.extend(["log", "capture --port 80"].map(|words| inside(words, None)));
                lines
            }),
            (
                "Kill Tidegate while the loop runs: layer 4 goes on (it is started again after 5 seconds)",
                vec![
                    Line { command: format!("kill -9 $(cat {RUN}/tidegate.pid)"), prints: None },
                    Line { command: format!("tail -f {RUN}/tidegate.log"), prints: None },
                ],
            ),
        ];
        Self { sections, api: tidegate.api.to_string() }
    }

    /// Runs every command that ends by itself; an error names those that fail.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let mut failed = Vec::new();
        for line in self.sections.iter().flat_map(|(_, lines)| lines) {
            let Some(prints) = line.prints else { continue };
            let (good, said) = shell(&line.command)?;
            println!("$ {}\n{}", line.command, said.trim_end());
            // dig and curl are content with answers that are none.
            if !good || !said.contains(prints) {
                failed.push(line.command.as_str());
            }
        }
        if !failed.is_empty() {
            bail!("these commands of the page do not work:\n  {}", failed.join("\n  "));
        }
        println!("Every command of the page works.");
        Ok(())
    }
}

/// In every answer of the demo app.
const WHO: &str = "\"task\"";

fn line(command: String, prints: &'static str) -> Line {
    Line { command, prints: Some(prints) }
}

fn url(vip: IpAddr) -> String {
    match vip {
        IpAddr::V4(vip) => format!("http://{vip}/"),
        IpAddr::V6(vip) => format!("'http://[{vip}]/'"),
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nThe demo is up. Type these in another root shell.")?;
        for (title, lines) in &self.sections {
            writeln!(f, "\n{title}:")?;
            lines.iter().try_for_each(|line| writeln!(f, "  {}", line.command))?;
        }
        writeln!(f, "\nThe status page for a browser on this machine: http://{}/", self.api)?;
        writeln!(
            f,
            "The machines: tg-client, tg-appliance, tg-marathon, tg-standby, tg-host-a, tg-host-b (ip netns exec NAME COMMAND)"
        )?;
        write!(f, "\nCtrl-C here (or `cargo xtask down` elsewhere) removes every trace.")
    }
}
