//! The Marathon stand-in alone, on loopback: to poke it with curl or any Marathon client.
//!
//! Tasks run in host mode on 127.0.0.1. Ctrl-C or SIGTERM ends it and them.

use std::net::TcpListener;

use anyhow::Context;
use clap::Parser;
use tidegate_tests::marathon::{Config, Dialer, Place, Settings, Standin};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Parser)]
struct Args {
    /// Where to listen; each further one is a standby (the first leads).
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: Vec<String>,
    /// `user:password`, as Marathon's --http_credentials.
    #[arg(long)]
    http_credentials: Option<String>,
    /// TASK_KILLING is not announced.
    #[arg(long)]
    no_task_killing: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let args = Args::parse();
    let mut nodes = Vec::new();
    for address in args.listen {
        let listener = TcpListener::bind(&address)
            .with_context(|| format!("cannot listen on {address}: choose another address with --listen"))?;
        let name = listener.local_addr()?.to_string();
        nodes.push((listener, name));
    }
    let credentials = match &args.http_credentials {
        None => None,
        Some(both) => {
            let (user, password) = both.split_once(':').context("--http_credentials is user:password")?;
            Some((user.to_owned(), password.to_owned()))
        }
    };
    let settings = Settings { credentials, task_killing: !args.no_task_killing, ..Settings::default() };
    let agents = vec![Place::Local { name: "127.0.0.1".into() }];
    let standin = Standin::start(Config { nodes, agents, dialer: Dialer::Local, settings })?;
    let url = standin.url();
    println!("Marathon's API is at {url}. Try:");
    println!(
        "  curl {url}/v2/apps -H 'Content-Type: application/json' -d '{{\"id\": \"/web\", \"cmd\": \"exec demo_app\", \"instances\": 3}}'"
    );
    println!("  curl {url}/v2/tasks");
    println!("  curl {url}/v2/events -H 'Accept: text/event-stream'");
    println!("  curl {url}/stand-in/faults -d '{{\"events\": {{\"lose\": [\"*\"]}}}}'");
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    standin.stop().await;
    Ok(())
}
