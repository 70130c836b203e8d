//! Servers that say who they are and then send everything back, and their clients.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::Namespace;

const PATIENCE: Duration = Duration::from_secs(20);

/// Listens on IPv4 and IPv6.
pub fn serve(namespace: &Namespace, port: u16, name: u8) {
    namespace.run(move || {
        let listener = TcpListener::bind(("::", port)).unwrap();
        thread::spawn(move || {
            // A client may be gone before it is accepted.
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || -> io::Result<()> {
                    stream.write_all(&[name])?;
                    let mut back = stream.try_clone()?;
                    io::copy(&mut stream, &mut back)?;
                    back.shutdown(Shutdown::Write)
                });
            }
        });
    });
}

pub struct Connection {
    pub stream: TcpStream,
    pub real: u8,
}

impl Connection {
    pub fn open(client: &Namespace, to: &str) -> io::Result<Self> {
        Self::open_within(client, to, PATIENCE)
    }

    /// Comes when somebody answers; meanwhile the machine does other things.
    pub fn wait(client: &Namespace, to: &str) -> JoinHandle<io::Result<Self>> {
        let to: SocketAddr = to.parse().unwrap();
        client.run(move || thread::spawn(move || Self::connect(to, PATIENCE)))
    }

    pub fn open_within(client: &Namespace, to: &str, patience: Duration) -> io::Result<Self> {
        let to: SocketAddr = to.parse().unwrap();
        client.run(move || Self::connect(to, patience))
    }

    fn connect(to: SocketAddr, patience: Duration) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let mut real = [0];
        stream.read_exact(&mut real)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, real: real[0] })
    }

    /// There and back, byte for byte.
    pub fn echo(&mut self, length: usize) -> io::Result<()> {
        let sent: Vec<u8> = (0..length).map(|i| (i * 7 + i / 251) as u8).collect();
        let mut writer = self.stream.try_clone()?;
        let copy = sent.clone();
        let writing = thread::spawn(move || writer.write_all(&copy));
        let mut got = vec![0; length];
        self.stream.read_exact(&mut got)?;
        writing.join().unwrap()?;
        if got == sent { Ok(()) } else { Err(io::Error::other("the echo differs")) }
    }
}
