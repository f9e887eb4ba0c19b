//! `[cluster]`

use super::sections::path;
use super::table::Table;
use serde::Serialize;
use std::path::{Path, PathBuf};
use teacher::remote::{LinkOptions, PublisherOptions, is_run_name};

/// `[cluster]`
#[derive(Clone, Debug, Serialize)]
pub struct Cluster {
    /// The server; several of one cluster.
    pub url: Vec<String>,
    /// What the run is called there.
    pub run: String,
    /// User at the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// File that has the user's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// A credentials file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<PathBuf>,
    /// Certificates by which the server's is believed, in place of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// Certificate that is shown to the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Batches of a teacher that are out at most.
    pub in_flight: usize,
    /// How often a batch is tried, by all workers together, before it is given up.
    pub attempts: usize,
    /// The most bytes of batches, and of labels, that wait on the server.
    pub stream_bytes: u64,
    /// Copies that the server's cluster keeps of each message.
    pub replicas: usize,
    /// Whether the log is published, for others to train from.
    pub publish: bool,
    /// The most bytes of the published log that the server keeps; 0: all.
    pub log_bytes: u64,
    /// Whether the log is one that somebody publishes.
    pub follow: bool,
}

impl Cluster {
    pub(super) fn read(mut table: Table, folder: &Path) -> Self {
        let cluster = Self {
            url: table.strings_or("url", &["nats://127.0.0.1:4222"]),
            run: table.required_string("run", "a name that no other run on the server has"),
            user: table.optional_string("user"),
            password_file: path(&mut table, "password_file", folder),
            credentials: path(&mut table, "credentials", folder),
            tls_ca: path(&mut table, "tls_ca", folder),
            tls_certificate: path(&mut table, "tls_certificate", folder),
            tls_key: path(&mut table, "tls_key", folder),
            in_flight: table.size("in_flight", 32, 1..=4096),
            attempts: table.size("attempts", 5, 1..=1000),
            stream_bytes: table.integer("stream_bytes", 1 << 30, 1 << 20..),
            replicas: table.size("replicas", 1, 1..=5),
            publish: table.boolean("publish", false),
            log_bytes: table.integer("log_bytes", 0, 0..),
            follow: table.boolean("follow", false),
        };
        if !cluster.run.is_empty() && !is_run_name(&cluster.run) {
            table.problem("run", format!("\"{}\" has other characters than letters, digits, - and _", cluster.run));
        }
        if cluster.url.is_empty() {
            table.problem("url", "empty; give the server's address, as \"nats://host:4222\"");
        }
        if cluster.url.iter().any(|url| url.contains('@')) {
            table.problem("url", "an address has no user and password here; give user and password_file");
        }
        if cluster.user.is_some() != cluster.password_file.is_some() {
            table.problem("user", "user and password_file go together");
        }
        if cluster.user.is_some() && cluster.credentials.is_some() {
            table.problem("credentials", "either these, or user and password_file");
        }
        if cluster.tls_certificate.is_some() != cluster.tls_key.is_some() {
            table.problem("tls_key", "tls_certificate and tls_key go together");
        }
        if cluster.publish && cluster.follow {
            table.problem("follow", "a log that is followed is published already");
        }
        table.finish();
        cluster
    }

    /// How the log is published; `None`: it is not.
    #[must_use]
    pub fn publisher(&self) -> Option<PublisherOptions> {
        self.publish.then(|| PublisherOptions { link: self.link(), stream_bytes: self.log_bytes, once: false })
    }

    /// What the server is reached with.
    #[must_use]
    pub fn link(&self) -> LinkOptions {
        LinkOptions {
            url: self.url.join(","),
            run: self.run.clone(),
            login: self.user.clone().zip(self.password_file.clone()),
            credentials: self.credentials.clone(),
            tls_ca: self.tls_ca.clone(),
            tls_identity: self.tls_certificate.clone().zip(self.tls_key.clone()),
            stream_bytes: self.stream_bytes,
            replicas: self.replicas,
        }
    }
}
