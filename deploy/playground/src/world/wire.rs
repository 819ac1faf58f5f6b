//! What a sniffer sees while the requests run: at the gateways' doors, where everything between the clusters passes,
//! and, as the control, where the requests of clients outside of the mesh pass.

use isthmus_sys::capture::Capture;

use super::clusters::Clusters;
use super::report::Report;

/// The beginning of every answer.
const TEXT: &[u8] = b"Hello version: ";
/// HBONE.
const PORT: u16 = 15008;

/// Captures that run until this is judged.
pub(super) struct Wire {
    doors: Vec<Capture>,
    outside: Vec<Capture>,
}

/// What was seen on a set of interfaces.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Bytes of TCP payload to and from [`PORT`].
    hbone: usize,
    /// Frames with [`TEXT`] in them.
    texts: usize,
}

impl Wire {
    /// Begins to listen.
    pub(super) fn open(world: &Clusters<'_>) -> anyhow::Result<Self> {
        let ports = world.plan.clusters.iter().map(|cluster| format!("{}-lb", cluster.name));
        let doors = ports.map(|port| Capture::open(&world.namespaces.underlay, &port));
        let outside = world.namespaces.nodes.values().map(|node| Capture::open(node, "services"));
        Ok(Self { doors: doors.collect::<Result<_, _>>()?, outside: outside.collect::<Result<_, _>>()? })
    }

    /// Adds what was seen to the report.
    pub(super) fn judge(self, report: &mut Report) {
        let (doors, outside) = (Seen::on(&self.doors), Seen::on(&self.outside));
        let detail = format!("{} bytes on {PORT}, the answers' text in {} packets", doors.hbone, doors.texts);
        report.check(
            "what crosses between the clusters is encrypted",
            doors.hbone > 0 && doors.texts == 0,
            detail,
        );
        let detail = format!("the answers' text in {} packets", outside.texts);
        report.check("the same sniffer reads clients outside of the mesh", outside.texts > 0, detail);
    }
}

impl Seen {
    fn on(captures: &[Capture]) -> Self {
        let mut seen = Self::default();
        captures.iter().flat_map(Capture::drain).for_each(|frame| seen.take(&frame));
        seen
    }

    fn take(&mut self, frame: &[u8]) {
        let Some((source, destination, payload)) = tcp(frame) else { return };
        if source == PORT || destination == PORT {
            self.hbone += payload.len();
        }
        if payload.windows(TEXT.len()).any(|window| window == TEXT) {
            self.texts += 1;
        }
    }
}

/// Ports and payload of an Ethernet frame with TCP over IPv4.
fn tcp(frame: &[u8]) -> Option<(u16, u16, &[u8])> {
    let number = |bytes: &[u8], at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    if number(frame, 12)? != 0x0800 {
        return None;
    }
    let ip = frame.get(14..)?;
    if *ip.get(9)? != 6 {
        return None;
    }
    // The total length is 0 in frames that the sender's offloading will still cut.
    let end = match usize::from(number(ip, 2)?) {
        0 => ip.len(),
        total => total.min(ip.len()),
    };
    let segment = ip.get(usize::from(ip[0] & 0xf) * 4..end)?;
    let header = usize::from(*segment.get(12)? >> 4) * 4;
    Some((number(segment, 0)?, number(segment, 2)?, segment.get(header..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(protocol: u8, destination: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0x00]);
        frame.extend(u16::try_from(40 + payload.len()).unwrap().to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x9c, 0x40]);
        frame.extend(destination.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        // Ethernet pads short frames; the padding is not payload.
        frame.extend([0; 6]);
        frame
    }

    #[test]
    fn payload_is_counted_and_searched() {
        let mut seen = Seen::default();
        seen.take(&frame(6, PORT, b"\x17\x03\x03\x00\x20"));
        seen.take(&frame(6, 80, b"xx Hello version: v1"));
        seen.take(&frame(17, PORT, b"Hello version: v1"));
        seen.take(b"short");
        assert_eq!(seen, Seen { hbone: 5, texts: 1 });
    }
}
