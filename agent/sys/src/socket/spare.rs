//! Sockets of connections to applications that were made before they are needed: several at once, so that the namespace is
//! entered and left once for all of them. How many follows from how fast they were used; a pod without connections has
//! none.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::{Socket, Type};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Sockets;
use crate::Error;

/// Sockets that are made at once, at most, and therefore spare ones of one family.
const MOST: usize = 8;
/// Sockets that lasted for this long were enough; they are made one by one when they last longer.
const SOON: Duration = Duration::from_secs(1);
/// Spare sockets are closed when no connection was made for this long.
const IDLE: Duration = Duration::from_secs(5);

/// Spare sockets of both families.
#[derive(Debug, Default)]
pub(super) struct Spares {
    v4: Mutex<Stock>,
    v6: Mutex<Stock>,
    /// There are spare sockets.
    made: Notify,
}

/// Spare sockets of one family, and how fast they are used.
#[derive(Debug, Default)]
struct Stock {
    sockets: Vec<Socket>,
    /// How many were made the last time, and when.
    made: Option<(usize, Instant)>,
    used: Option<Instant>,
}

impl Sockets {
    /// A socket for a connection with a foreign source address.
    pub(super) fn foreign(&self, to: SocketAddr) -> Result<Socket, Error> {
        let Some(spares) = &self.spares else { return Ok(self.make(to, 1)?.0) };
        // Not in the match: the lock is not held while sockets are made.
        let taken = spares.of(to).take(Instant::now());
        let wanted = match taken {
            Ok(socket) => return Ok(socket),
            Err(wanted) => wanted,
        };
        let (socket, excess) = self.make(to, wanted)?;
        if !excess.is_empty() {
            spares.of(to).put(excess);
            spares.made.notify_one();
        }
        Ok(socket)
    }

    /// Closes spare sockets once no connection was made for some seconds. Never completes; one call per factory is enough
    /// for all of its clones.
    pub async fn drop_idle_spares(&self) {
        let Some(spares) = &self.spares else { return std::future::pending().await };
        loop {
            spares.made.notified().await;
            while let Some(idle_at) = spares.drop_idle(Instant::now()) {
                tokio::time::sleep_until(idle_at).await;
            }
        }
    }

    /// Number of spare sockets.
    #[must_use]
    pub fn spares(&self) -> usize {
        self.spares
            .as_ref()
            .map_or(0, |spares| lock(&spares.v4).sockets.len() + lock(&spares.v6).sockets.len())
    }

    /// One, and up to as many as are wanted together with it: fewer when there are no descriptors left.
    fn make(&self, to: SocketAddr, wanted: usize) -> Result<(Socket, Vec<Socket>), Error> {
        let made = self.inside(|| {
            let first = super::new(to, Type::STREAM)?;
            let others = std::iter::repeat_with(|| super::new(to, Type::STREAM)).take(wanted - 1);
            io::Result::Ok((first, others.map_while(Result::ok).collect::<Vec<_>>()))
        })?;
        let (first, others) = made.map_err(Error::on("make socket for", to))?;
        let prepared =
            others.into_iter().map(|socket| self.prepare_foreign(socket, to)).collect::<Result<_, _>>()?;
        Ok((self.prepare_foreign(first, to)?, prepared))
    }
}

// === impl Spares ===

impl Spares {
    fn of(&self, to: SocketAddr) -> MutexGuard<'_, Stock> {
        lock(if to.is_ipv4() { &self.v4 } else { &self.v6 })
    }

    /// Closes the sockets of a family that is not used any more. When the next may be closed, if any are left.
    fn drop_idle(&self, now: Instant) -> Option<Instant> {
        [&self.v4, &self.v6].into_iter().filter_map(|stock| lock(stock).drop_idle(now)).min()
    }
}

fn lock(stock: &Mutex<Stock>) -> MutexGuard<'_, Stock> {
    // A panic cannot leave a stock inconsistent.
    stock.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Stock ===

impl Stock {
    /// A spare socket, or how many to make of which one is used at once: twice as many as last time if those were used
    /// soon.
    fn take(&mut self, now: Instant) -> Result<Socket, usize> {
        self.used = Some(now);
        if let Some(socket) = self.sockets.pop() {
            return Ok(socket);
        }
        let wanted = match self.made {
            Some((last, at)) if now.duration_since(at) < SOON => (2 * last).min(MOST),
            _ => 1,
        };
        self.made = Some((wanted, now));
        Err(wanted)
    }

    /// Keeps what was made in excess, unless another thread has made enough meanwhile.
    fn put(&mut self, made: Vec<Socket>) {
        self.sockets.extend(made);
        self.sockets.truncate(MOST);
    }

    fn drop_idle(&mut self, now: Instant) -> Option<Instant> {
        let idle_at = self.used.filter(|_| !self.sockets.is_empty())? + IDLE;
        if now < idle_at {
            return Some(idle_at);
        }
        // With its memory.
        self.sockets = Vec::new();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn socket() -> Socket {
        super::super::new((Ipv4Addr::LOCALHOST, 0).into(), Type::STREAM).unwrap()
    }

    /// Uses a stock once; how many were made for it.
    fn use_one(stock: &mut Stock, now: Instant) -> usize {
        match stock.take(now) {
            Ok(_) => 0,
            Err(wanted) => {
                stock.put((1..wanted).map(|_| socket()).collect());
                wanted
            }
        }
    }

    #[test]
    fn as_many_are_made_as_are_used_within_a_second() {
        let (mut stock, mut now) = (Stock::default(), Instant::now());
        let made: Vec<_> = (0..23).map(|_| use_one(&mut stock, now)).collect();
        assert_eq!(made, [1, 2, 0, 4, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
        now += SOON;
        assert_eq!(use_one(&mut stock, now), 1, "the last ones were enough for a second");
        assert_eq!(use_one(&mut stock, now + SOON), 1, "one per second needs no spare");
        assert!(stock.sockets.is_empty());
    }

    #[test]
    fn threads_that_make_sockets_at_the_same_time_keep_the_limit() {
        let mut stock = Stock::default();
        stock.put((0..MOST - 1).map(|_| socket()).collect());
        stock.put((0..MOST - 1).map(|_| socket()).collect());
        assert_eq!(stock.sockets.len(), MOST);
    }

    #[test]
    fn idle_sockets_are_closed() {
        let (mut stock, now) = (Stock::default(), Instant::now());
        assert_eq!((use_one(&mut stock, now), use_one(&mut stock, now)), (1, 2));
        assert_eq!(stock.drop_idle(now), Some(now + IDLE));
        assert_eq!(stock.sockets.len(), 1);
        assert_eq!(stock.drop_idle(now + IDLE), None);
        assert!(stock.sockets.is_empty());
    }
}
