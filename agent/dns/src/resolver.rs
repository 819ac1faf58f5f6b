//! Resolves the names that the agent itself connects to, with its own DNS servers: both families at once, cached for the
//! TTL of the answers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isthmus_sys::socket::Sockets;
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE};
use tokio::time::Instant;

use crate::relay::{Relay, RelayError};
use crate::response::Transport;

/// Largest number of cached names.
const MAX_CACHED: usize = 4096;
/// Upper bound of the TTL.
const MAX_TTL: Duration = Duration::from_secs(3600);

/// A caching stub resolver. Search domains are not applied: names are fully qualified.
#[derive(Debug)]
pub struct Resolver {
    relay: Relay,
    cache: Mutex<HashMap<String, CacheEntry>>,
}

#[derive(Debug)]
struct CacheEntry {
    addresses: Arc<[IpAddr]>,
    until: Instant,
}

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// Not a DNS name.
    #[error("{0:?} is not a valid DNS name")]
    BadName(String),
    /// No server answered.
    #[error("{0}")]
    NoAnswer(String),
    /// The server answered with an error, such as NXDOMAIN.
    #[error("DNS server answered {0:?}")]
    Refused(RCODE),
    /// The name exists and has no address.
    #[error("the name exists but has no address")]
    NoAddress,
    /// The response is invalid.
    #[error("invalid DNS response: {0}")]
    BadAnswer(String),
}

/// Addresses of one response, and their TTL.
type Found = (Vec<IpAddr>, Duration);

// === impl Resolver ===

impl Resolver {
    /// A resolver over these servers, tried in order, each with this timeout.
    #[must_use]
    pub fn new(sockets: &Sockets, servers: Vec<std::net::SocketAddr>, timeout: Duration) -> Self {
        Self { relay: Relay::new(sockets, servers, timeout), cache: Mutex::default() }
    }

    /// The addresses of a name, of both families; at least one.
    ///
    /// # Errors
    /// When it has none, or no server answers.
    pub async fn lookup(&self, name: &str) -> Result<Arc<[IpAddr]>, LookupError> {
        if let Some(entry) = self.lock().get(name).filter(|entry| entry.until > Instant::now()) {
            return Ok(Arc::clone(&entry.addresses));
        }
        let (v4, v6) = tokio::join!(self.ask(name, TYPE::A), self.ask(name, TYPE::AAAA));
        // One family suffices; of two failures the first is returned.
        let (addresses, ttl): Found = match (v4, v6) {
            (Ok((mut v4, first)), Ok((v6, second))) => {
                let ttl = match (v4.is_empty(), v6.is_empty()) {
                    (true, _) => second,
                    (_, true) => first,
                    _ => first.min(second),
                };
                v4.extend(v6);
                (v4, ttl)
            }
            (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.0.is_empty() => found,
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        if addresses.is_empty() {
            return Err(LookupError::NoAddress);
        }
        let addresses: Arc<[IpAddr]> = addresses.into();
        self.store(name, &addresses, ttl);
        Ok(addresses)
    }

    fn store(&self, name: &str, addresses: &Arc<[IpAddr]>, ttl: Duration) {
        let (now, mut cache) = (Instant::now(), self.lock());
        if cache.len() >= MAX_CACHED {
            cache.retain(|_, entry| entry.until > now);
        }
        if cache.len() < MAX_CACHED && !ttl.is_zero() {
            let until = now + ttl.min(MAX_TTL);
            cache.insert(name.to_owned(), CacheEntry { addresses: Arc::clone(addresses), until });
        }
    }

    async fn ask(&self, name: &str, family: TYPE) -> Result<Found, LookupError> {
        let query = query(name, family)?;
        let failed = |error: RelayError| LookupError::NoAnswer(error.to_string());
        let mut answer = self.relay.ask(&query, Transport::Udp, None).await.map_err(failed)?;
        // TC: the whole answer is fetched over TCP.
        if answer.get(2).is_some_and(|flags| flags & 2 != 0) {
            answer = self.relay.ask(&query, Transport::Tcp, None).await.map_err(failed)?;
        }
        read(&answer, name)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, CacheEntry>> {
        // A panic cannot leave the cache inconsistent.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The addresses of a response. CNAME records matter only for their TTL: the server has followed them.
fn read(answer: &[u8], asked: &str) -> Result<Found, LookupError> {
    let packet = Packet::parse(answer).map_err(|error| LookupError::BadAnswer(error.to_string()))?;
    let about = packet.questions.first().map(|question| question.qname.to_string());
    if !about.is_some_and(|about| about.eq_ignore_ascii_case(asked.trim_end_matches('.'))) {
        return Err(LookupError::BadAnswer("it is for another question".to_owned()));
    }
    if packet.rcode() != RCODE::NoError {
        return Err(LookupError::Refused(packet.rcode()));
    }
    let mut ttl = MAX_TTL;
    let mut addresses = Vec::new();
    for record in &packet.answers {
        let address = match &record.rdata {
            RData::A(a) => Some(IpAddr::V4(a.address.into())),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.address.into())),
            RData::CNAME(_) => None,
            _ => continue,
        };
        ttl = ttl.min(Duration::from_secs(record.ttl.into()));
        addresses.extend(address);
    }
    Ok((addresses, ttl))
}

#[cfg(test)]
mod tests;
