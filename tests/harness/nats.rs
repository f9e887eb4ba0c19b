//! A NATS server for tests.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(unreachable_pub, reason = "a module of test binaries")]

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// No server takes longer to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server, whose streams survive it.
pub struct Server {
    pub port: u16,
    state: TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// With JetStream.
    pub fn start() -> Self {
        Self::start_with(&["-js"], "")
    }

    /// With these arguments, and this configuration.
    pub fn start_with(arguments: &[&str], configuration: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let state = tempfile::tempdir().unwrap();
        let file = state.path().join("server.conf");
        std::fs::write(&file, configuration).unwrap();
        let mut arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        arguments.extend(["-c".to_owned(), file.to_str().unwrap().to_owned()]);
        let mut server = Self { port, state, arguments, child: None };
        server.up();
        server
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn up(&mut self) {
        let state = self.state.path().to_str().unwrap();
        let mut command = Command::new(program());
        command.args(["-a", "127.0.0.1", "-p", &self.port.to_string(), "-sd", state]).args(&self.arguments);
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "the server does not come up");
            std::thread::yield_now();
        }
    }

    /// Killed, and all that it had stored with it.
    pub fn lose(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.state.path().join("jetstream")).unwrap();
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The server's program.
fn program() -> PathBuf {
    let found = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/nats-server")).output().unwrap();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    PathBuf::from(String::from_utf8_lossy(&found.stdout).trim())
}
