//! Addresses of names that the agent itself must know: asked of its own servers, both families at once, and kept for as
//! long as the answers hold.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isthmus_sys::socket::Sockets;
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE};
use tokio::time::Instant;

use crate::answer::Transport;
use crate::relay::{Relay, RelayError};

/// Names that are kept at most.
const MOST: usize = 4096;
/// An answer holds for no longer than this, whatever it says.
const LONGEST: Duration = Duration::from_secs(3600);

/// Looks up names. Search domains are not added: names are fully qualified.
#[derive(Debug)]
pub struct Resolver {
    relay: Relay,
    held: Mutex<HashMap<String, Held>>,
}

#[derive(Debug)]
struct Held {
    addresses: Arc<[IpAddr]>,
    until: Instant,
}

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// It cannot be asked for.
    #[error("{0:?} is no name")]
    BadName(String),
    /// No server answered.
    #[error("{0}")]
    NoAnswer(String),
    /// The server says that there is no such name, or that something is wrong.
    #[error("the name server answered {0:?}")]
    Refused(RCODE),
    /// The name exists and has no address.
    #[error("the name has no address")]
    NoAddress,
    /// The answer cannot be read.
    #[error("the answer makes no sense: {0}")]
    BadAnswer(String),
}

/// What one answer says, and for how long.
type Found = (Vec<IpAddr>, Duration);

// === impl Resolver ===

impl Resolver {
    /// Asks these servers, in order, each for so long.
    #[must_use]
    pub fn new(sockets: &Sockets, servers: Vec<std::net::SocketAddr>, patience: Duration) -> Self {
        Self { relay: Relay::new(sockets, servers, patience), held: Mutex::default() }
    }

    /// The addresses of a name, of both families; never none.
    ///
    /// # Errors
    /// When it has none, or nobody says.
    pub async fn lookup(&self, name: &str) -> Result<Arc<[IpAddr]>, LookupError> {
        if let Some(held) = self.lock().get(name).filter(|held| held.until > Instant::now()) {
            return Ok(Arc::clone(&held.addresses));
        }
        let (v4, v6) = tokio::join!(self.ask(name, TYPE::A), self.ask(name, TYPE::AAAA));
        // One family is enough; of two failures the first is told.
        let (addresses, holds): Found = match (v4, v6) {
            (Ok((mut v4, first)), Ok((v6, second))) => {
                let holds = match (v4.is_empty(), v6.is_empty()) {
                    (true, _) => second,
                    (_, true) => first,
                    _ => first.min(second),
                };
                v4.extend(v6);
                (v4, holds)
            }
            (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.0.is_empty() => found,
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        if addresses.is_empty() {
            return Err(LookupError::NoAddress);
        }
        let addresses: Arc<[IpAddr]> = addresses.into();
        self.keep(name, &addresses, holds);
        Ok(addresses)
    }

    fn keep(&self, name: &str, addresses: &Arc<[IpAddr]>, holds: Duration) {
        let (now, mut held) = (Instant::now(), self.lock());
        if held.len() >= MOST {
            held.retain(|_, held| held.until > now);
        }
        if held.len() < MOST && !holds.is_zero() {
            let until = now + holds.min(LONGEST);
            held.insert(name.to_owned(), Held { addresses: Arc::clone(addresses), until });
        }
    }

    async fn ask(&self, name: &str, family: TYPE) -> Result<Found, LookupError> {
        let query = query(name, family)?;
        let failed = |error: RelayError| LookupError::NoAnswer(error.to_string());
        let mut answer = self.relay.ask(&query, Transport::Udp, None).await.map_err(failed)?;
        // Cut off: the whole of it comes over TCP.
        if answer.get(2).is_some_and(|flags| flags & 2 != 0) {
            answer = self.relay.ask(&query, Transport::Tcp, None).await.map_err(failed)?;
        }
        read(&answer, name)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        // A panic cannot leave a name half in.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn query(name: &str, family: TYPE) -> Result<Vec<u8>, LookupError> {
    let bad = || LookupError::BadName(name.to_owned());
    let mut packet = Packet::new_query(fastrand::u16(..));
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name.trim_end_matches('.')).map_err(|_| bad())?;
    packet.questions.push(Question::new(name, family.into(), CLASS::IN.into(), false));
    packet.build_bytes_vec().map_err(|_| bad())
}

/// The addresses in an answer. Aliases on the way to them are the server's business, but for how long they hold.
fn read(answer: &[u8], asked: &str) -> Result<Found, LookupError> {
    let packet = Packet::parse(answer).map_err(|error| LookupError::BadAnswer(error.to_string()))?;
    let about = packet.questions.first().map(|question| question.qname.to_string());
    if !about.is_some_and(|about| about.eq_ignore_ascii_case(asked.trim_end_matches('.'))) {
        return Err(LookupError::BadAnswer("it answers another question".to_owned()));
    }
    if packet.rcode() != RCODE::NoError {
        return Err(LookupError::Refused(packet.rcode()));
    }
    let mut holds = LONGEST;
    let mut addresses = Vec::new();
    for record in &packet.answers {
        let address = match &record.rdata {
            RData::A(a) => Some(IpAddr::V4(a.address.into())),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.address.into())),
            RData::CNAME(_) => None,
            _ => continue,
        };
        holds = holds.min(Duration::from_secs(record.ttl.into()));
        addresses.extend(address);
    }
    Ok((addresses, holds))
}

#[cfg(test)]
mod tests;
