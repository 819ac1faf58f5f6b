//! The predecessor's side: connects to the successor and gives it one unit after the other.

mod state;

use std::path::Path;
use std::time::Duration;

use isthmus_model::PodUid;
use isthmus_sys::secrecy::NotDumpable;
use tokio::time::{Instant, timeout};

pub use self::state::{Action, Event, Sending};
use crate::channel::{Channel, ChannelError};
use crate::frame::Frame;
use crate::metrics::{Metrics, Outcome};
use crate::seams::{Source, Taken};

/// How long the successor may take to answer. The connections of a unit stand still meanwhile.
const ANSWER: Duration = Duration::from_secs(2);

/// How the hand-over has ended. What is still open is drained.
#[derive(Debug)]
pub enum Left {
    /// Nothing listens there: there is no successor, and nothing was done.
    NoSuccessor,
    /// There were no more units, or there was no time for more.
    Finished(Summary),
    /// The conversation broke.
    Broken(Summary, ChannelError),
}

/// What was handed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Connections that the successor has.
    pub handed_over: usize,
    /// Connections that it refused, or that were not its own when the conversation broke.
    pub returned: usize,
    /// For how long so many connections stood still.
    pauses: Vec<(Duration, usize)>,
}

/// Hands over to the agent that listens at `path`. No unit is taken after `until`.
pub async fn hand_over(
    path: &Path,
    source: &dyn Source,
    metrics: &Metrics,
    build: &str,
    until: Instant,
) -> Left {
    let mut channel = match Channel::connect(path).await {
        Ok(channel) => channel,
        Err(ChannelError::Io(error)) => {
            tracing::debug!(socket = %path.display(), %error, "no agent listens for a hand-over");
            return Left::NoSuccessor;
        }
        Err(error) => return Left::Broken(Summary::default(), error),
    };
    let _secret = NotDumpable::begin();
    let mut conversation =
        Conversation { source, metrics, until, pods: Vec::new(), unit: None, summary: Summary::default() };
    match conversation.run(&mut channel, build).await {
        Ok(()) => Left::Finished(conversation.summary),
        Err(error) => Left::Broken(conversation.summary, error),
    }
}

impl Summary {
    /// The longest time for which a connection stood still, but for so many of a hundred.
    #[must_use]
    pub fn pause(&self, but_for_percent: usize) -> Duration {
        let mut pauses = self.pauses.clone();
        pauses.sort_unstable_by(|a, b| b.cmp(a));
        let mut left_out = self.handed_over * but_for_percent / 100;
        for (pause, connections) in pauses {
            if connections > left_out {
                return pause;
            }
            left_out -= connections;
        }
        Duration::ZERO
    }
}

struct Conversation<'a> {
    source: &'a dyn Source,
    metrics: &'a Metrics,
    until: Instant,
    pods: Vec<PodUid>,
    /// The unit that is between the two agents.
    unit: Option<Box<dyn Taken>>,
    summary: Summary,
}

impl Conversation<'_> {
    async fn run(&mut self, channel: &mut Channel, build: &str) -> Result<(), ChannelError> {
        let mut machine = Sending::default();
        let mut error = None;
        let mut event = self.greet(channel, build).await.unwrap_or_else(|lost| failed(lost, &mut error));
        loop {
            let action = machine.step(&event);
            let next = match action {
                Action::Close => {
                    self.source.close();
                    Ok(self.take().await)
                }
                Action::Take => Ok(self.take().await),
                Action::Offer => self.offer(channel).await,
                Action::Commit => in_time(channel.send(Frame::Commit)).await.map(|()| Event::Committed),
                Action::Release => {
                    self.release();
                    Ok(self.take().await)
                }
                Action::Refuse => {
                    self.restore(Outcome::Refused);
                    Ok(self.take().await)
                }
                Action::Return => {
                    self.restore(Outcome::Returned);
                    return Err(error.unwrap_or(ChannelError::Closed));
                }
                Action::Finish => {
                    // The successor ends the conversation as well when the socket closes.
                    let _ = in_time(channel.send(Frame::Finished)).await;
                    return Ok(());
                }
                Action::Stop => return Err(error.unwrap_or(ChannelError::Closed)),
            };
            event = next.unwrap_or_else(|lost| failed(lost, &mut error));
        }
    }

    async fn greet(&mut self, channel: &mut Channel, build: &str) -> Result<Event, ChannelError> {
        in_time(channel.send(Frame::Hello { build: build.to_owned() })).await?;
        let (Frame::Wants(pods), _) = in_time(channel.recv()).await? else { return Ok(Event::Broken) };
        self.pods = pods.iter().map(|pod| PodUid::from(pod.as_str())).collect();
        Ok(Event::Wants)
    }

    async fn take(&mut self) -> Event {
        if Instant::now() >= self.until {
            return Event::NoMore;
        }
        let Some(unit) = self.source.next(&self.pods).await else { return Event::NoMore };
        self.unit = Some(unit);
        Event::Taken
    }

    async fn offer(&mut self, channel: &mut Channel) -> Result<Event, ChannelError> {
        let Some(unit) = &self.unit else { return Ok(Event::Broken) };
        let items = u32::try_from(unit.items().len()).unwrap_or(u32::MAX);
        let pod = unit.pod().as_str().to_owned();
        let conversation = async {
            channel.send(Frame::Offer { pod, items }).await?;
            channel.send_items(unit.items()).await?;
            channel.recv().await
        };
        match in_time(conversation).await?.0 {
            Frame::Accepted => Ok(Event::Accepted),
            Frame::Refused { reason } => {
                let (pod, connections) = (unit.pod().as_str(), unit.connections());
                tracing::info!(
                    pod,
                    connections,
                    reason,
                    "the successor refused connections, they are drained"
                );
                Ok(Event::Refused)
            }
            _ => Ok(Event::Broken),
        }
    }

    fn release(&mut self) {
        let Some(unit) = self.unit.take() else { return };
        let pause = unit.since().elapsed();
        let (pod, connections) = (unit.pod().as_str(), unit.connections());
        tracing::debug!(pod, connections, items = unit.items().len(), ?pause, "handed over");
        self.metrics.paused(pause);
        self.metrics.count(Outcome::HandedOver, unit.connections());
        self.summary.handed_over += unit.connections();
        self.summary.pauses.push((pause, unit.connections()));
        unit.release();
    }

    fn restore(&mut self, outcome: Outcome) {
        let Some(unit) = self.unit.take() else { return };
        self.metrics.count(outcome, unit.connections());
        self.summary.returned += unit.connections();
        unit.restore();
    }
}

fn failed(lost: ChannelError, error: &mut Option<ChannelError>) -> Event {
    *error = Some(lost);
    Event::Broken
}

async fn in_time<T>(step: impl Future<Output = Result<T, ChannelError>>) -> Result<T, ChannelError> {
    let late = || ChannelError::Io(std::io::ErrorKind::TimedOut.into());
    timeout(ANSWER, step).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_counts_for_each_connection_that_stood_still() {
        let ms = Duration::from_millis;
        let pauses = vec![(ms(1), 98), (ms(30), 1), (ms(5), 1), (ms(90), 0)];
        let summary = Summary { handed_over: 100, returned: 0, pauses };
        assert_eq!([0, 1, 2].map(|percent| summary.pause(percent)), [ms(30), ms(5), ms(1)]);
        assert_eq!(Summary::default().pause(1), Duration::ZERO);
    }
}
