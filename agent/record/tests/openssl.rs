//! The `openssl` program as the peer, over a loopback socket: both roles, each suite, key updates by either side. Behind
//! the feature `openssl`; without the program the tests fail.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use isthmus_record::handshake::{HandshakeError, Handshaker, Progress, Session};
use isthmus_record::{HEADER_LEN, OVERHEAD, Opened, Opener, Role, Suite};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);
const NAME: &str = "peer.test";

/// Certificates in files, one for each end, each trusting the other's.
struct Files {
    folder: TempDir,
    ours: rcgen::CertifiedKey<rcgen::KeyPair>,
    theirs: rcgen::CertifiedKey<rcgen::KeyPair>,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [ours, theirs] = [0, 1].map(|_| rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap());
        fs::write(folder.path().join("ours.pem"), ours.cert.pem()).unwrap();
        fs::write(folder.path().join("cert.pem"), theirs.cert.pem()).unwrap();
        fs::write(folder.path().join("key.pem"), theirs.signing_key.serialize_pem()).unwrap();
        Self { folder, ours, theirs }
    }

    fn handshaker(&self, role: Role) -> Handshaker {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.theirs.cert.der().clone()).unwrap();
        let chain = vec![self.ours.cert.der().clone()];
        let key = PrivateKeyDer::try_from(self.ours.signing_key.serialize_der()).unwrap();
        match role {
            Role::Client => {
                let config = ClientConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[&version::TLS13])
                    .unwrap()
                    .with_root_certificates(roots)
                    .with_client_auth_cert(chain, key)
                    .unwrap();
                Handshaker::client(&config, ServerName::try_from(NAME).unwrap()).unwrap()
            }
            Role::Server => {
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
                let config = ServerConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[&version::TLS13])
                    .unwrap()
                    .with_client_cert_verifier(verifier.build().unwrap())
                    .with_single_cert(chain, key)
                    .unwrap();
                Handshaker::server(&config).unwrap()
            }
        }
    }
}

/// The program, and what it prints.
struct OpenSsl {
    child: Child,
    stdin: ChildStdin,
    printed: Receiver<Vec<u8>>,
    text: Vec<u8>,
    socket: TcpStream,
    inbox: Vec<u8>,
}

impl OpenSsl {
    /// Starts `openssl` in the role that is not `ours`, and connects to it.
    fn start(files: &Files, ours: Role, options: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = listener.local_addr().unwrap().to_string();
        let arguments: &[&str] = match ours {
            Role::Client => &["s_server", "-accept", "127.0.0.1:0", "-Verify", "1", "-verify_return_error"],
            Role::Server => &["s_client", "-connect", &connect, "-servername", NAME, "-verify_return_error"],
        };
        let mut child = Command::new("openssl")
            .args(arguments)
            .args(["-cert", "cert.pem", "-key", "key.pem", "-CAfile", "ours.pem"])
            .args(options)
            .current_dir(files.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program openssl is needed for these tests");
        let (stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, printed) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stdout.read(&mut buffer) {
                let _ = sender.send(buffer[..read].to_vec());
            }
        });
        let mut text = Vec::new();
        let socket = match ours {
            Role::Client => {
                let printed =
                    wait_for(&printed, &mut text, b"ACCEPT 127.0.0.1:", |rest| rest.contains(&b'\n'));
                let port = printed.split(|byte| *byte == b'\n').next().unwrap();
                let port: u16 = std::str::from_utf8(port).unwrap().trim().parse().unwrap();
                TcpStream::connect(("127.0.0.1", port)).unwrap()
            }
            Role::Server => listener.accept().unwrap().0,
        };
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { child, stdin, printed, text, socket, inbox: Vec::new() }
    }

    fn shake_hands(&mut self, mut ours: Handshaker) -> Result<Session, HandshakeError> {
        loop {
            let mut output = Vec::new();
            let progress = ours.step(&mut self.inbox, &mut output);
            self.socket.write_all(&output).unwrap();
            if progress? == Progress::Done {
                return ours.into_session();
            }
            self.read();
        }
    }

    fn read(&mut self) {
        let mut buffer = [0; 4096];
        let read = self.socket.read(&mut buffer).unwrap();
        assert!(read > 0, "closed; printed {}", String::from_utf8_lossy(&self.text));
        self.inbox.extend_from_slice(&buffer[..read]);
    }

    /// The next record that is no ticket, and the data in it.
    fn receive(&mut self, session: &mut Session) -> (Opened, Vec<u8>) {
        loop {
            let len = Opener::record_len(&self.inbox).unwrap();
            let Some(len) = len.filter(|len| *len <= self.inbox.len()) else {
                self.read();
                continue;
            };
            let mut record: Vec<u8> = self.inbox.drain(..len).collect();
            match session.opener.open(&mut record).unwrap() {
                Opened::Ticket => assert_eq!(session.role, Role::Client),
                Opened::Data(range) => return (Opened::Data(0..0), record[range].to_vec()),
                other => return (other, Vec::new()),
            }
        }
    }

    /// Has the program send a line, and receives it.
    fn line_from(&mut self, session: &mut Session, line: &[u8]) {
        self.type_in(line);
        assert_eq!(self.receive(session), (Opened::Data(0..0), line.to_vec()));
    }

    /// Sends a line, and waits until the program prints it.
    fn line_to(&mut self, session: &mut Session, line: &[u8]) {
        let mut record = vec![0; line.len() + OVERHEAD];
        record[HEADER_LEN..][..line.len()].copy_from_slice(line);
        session.sealer.seal(&mut record).unwrap();
        self.socket.write_all(&record).unwrap();
        wait_for(&self.printed, &mut self.text, line, |_| true);
    }

    fn type_in(&mut self, line: &[u8]) {
        self.stdin.write_all(line).unwrap();
        self.stdin.flush().unwrap();
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `wanted` is printed and what follows it is `enough`, forgets everything up to `wanted`, and returns what
/// follows.
fn wait_for(
    printed: &Receiver<Vec<u8>>,
    text: &mut Vec<u8>,
    wanted: &[u8],
    enough: impl Fn(&[u8]) -> bool,
) -> Vec<u8> {
    loop {
        if let Some(at) = text.windows(wanted.len()).position(|window| window == wanted)
            && enough(&text[at + wanted.len()..])
        {
            text.drain(..at + wanted.len());
            return text.clone();
        }
        match printed.recv_timeout(PATIENCE) {
            Ok(more) => text.extend(more),
            Err(_) => panic!("openssl printed only {}", String::from_utf8_lossy(text)),
        }
    }
}

fn suite_name(suite: Suite) -> &'static str {
    match suite {
        Suite::Aes128GcmSha256 => "TLS_AES_128_GCM_SHA256",
        Suite::Aes256GcmSha384 => "TLS_AES_256_GCM_SHA384",
        Suite::ChaCha20Poly1305Sha256 => "TLS_CHACHA20_POLY1305_SHA256",
    }
}

fn converse(suite: Suite, role: Role) {
    let files = Files::new();
    let mut peer = OpenSsl::start(&files, role, &["-tls1_3", "-ciphersuites", suite_name(suite)]);
    let mut session = peer.shake_hands(files.handshaker(role)).unwrap();
    assert_eq!((session.suite, session.role), (suite, role));
    assert_eq!(session.peer_certificates, std::slice::from_ref(files.theirs.cert.der()));
    let session = &mut session;
    peer.line_to(session, b"first to openssl\n");
    peer.line_from(session, b"first from openssl\n");
    // k and K at the start of a line are commands.
    for _ in 0..3 {
        peer.type_in(b"k\n");
        assert_eq!(peer.receive(session).0, Opened::KeyUpdate { requested: false });
        peer.line_from(session, b"after its own update\n");
        peer.line_to(session, b"no update of ours\n");
        peer.type_in(b"K\n");
        assert_eq!(peer.receive(session).0, Opened::KeyUpdate { requested: true });
        let answer = session.sealer.key_update(false).unwrap();
        peer.socket.write_all(&answer).unwrap();
        peer.line_to(session, b"after the answer\n");
        peer.line_from(session, b"and back\n");
    }
    for round in 0..3 {
        let record = session.sealer.key_update(false).unwrap();
        peer.socket.write_all(&record).unwrap();
        peer.line_to(session, format!("after our update {round}\n").as_bytes());
        let record = session.sealer.key_update(true).unwrap();
        peer.socket.write_all(&record).unwrap();
        peer.line_to(session, format!("after our request {round}\n").as_bytes());
        peer.type_in(b"an answer first\n");
        assert_eq!(peer.receive(session).0, Opened::KeyUpdate { requested: false });
        assert_eq!(peer.receive(session).1, b"an answer first\n");
    }
    for len in (1..300).chain(16380..=16384) {
        // A full record of printable bytes, none of which is a line by itself.
        let line: Vec<u8> = (0..len).map(|at| b'a' + u8::try_from((at * 7 + len) % 26).unwrap()).collect();
        peer.line_to(session, &line);
    }
    close(&mut peer, session);
}

/// `s_client` closes when it is told to; `s_server` says `close_notify` only when its client has.
fn close(peer: &mut OpenSsl, session: &mut Session) {
    if session.role == Role::Server {
        peer.type_in(b"Q\n");
        assert_eq!(peer.receive(session).0, Opened::CloseNotify);
    }
    let close = session.sealer.close_notify().unwrap();
    peer.socket.write_all(&close).unwrap();
    if session.role == Role::Client {
        assert_eq!(peer.receive(session).0, Opened::CloseNotify);
    }
}

#[test]
fn a_client_of_ours_and_s_server_understand_each_other() {
    Suite::ALL.into_iter().for_each(|suite| converse(suite, Role::Client));
}

#[test]
fn a_server_of_ours_and_s_client_understand_each_other() {
    Suite::ALL.into_iter().for_each(|suite| converse(suite, Role::Server));
}

#[test]
fn a_peer_that_speaks_tls_1_2_only_is_refused() {
    for role in [Role::Client, Role::Server] {
        let files = Files::new();
        let mut peer = OpenSsl::start(&files, role, &["-tls1_2"]);
        let error = peer.shake_hands(files.handshaker(role)).unwrap_err();
        assert!(matches!(error, HandshakeError::Tls(_) | HandshakeError::NotTls13), "{error:?}");
    }
}
