//! RFC 8448, section 3, "Simple 1-RTT Handshake": keys from the published traffic secrets, and the published records after
//! the handshake.

use crate::{
    Alert, HEADER_LEN, OVERHEAD, Opened, Opener, OpenerParts, PartialMessage, Role, Sealer, SealerParts,
    Suite, TrafficSecret,
};

const CLIENT_SECRET: &str = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5";
const CLIENT_KEY: &str = "17422dda596ed5d9acd890e3c63f5051";
const CLIENT_IV: &str = "5b78923dee08579033e523d9";
const SERVER_SECRET: &str = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643";
const SERVER_KEY: &str = "9f02283b6c9c07efc26bb9f2ac92e356";
const SERVER_IV: &str = "cf782b88dd83549aadf1e984";

const CLIENT_DATA: &str = "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b\
                           62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4";
const CLIENT_ALERT: &str = "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3";
const SERVER_DATA: &str = "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8\
                           fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d";
const SERVER_ALERT: &str = "1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9";

fn bytes(hex: &str) -> Vec<u8> {
    let hex: String = hex.split_whitespace().collect();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn secret(hex: &str) -> TrafficSecret {
    TrafficSecret::new(Suite::Aes128GcmSha256, &bytes(hex)).unwrap()
}

fn opener(hex: &str, sequence: u64, role: Role) -> Opener {
    let partial = PartialMessage::default();
    let parts = OpenerParts { secret: secret(hex), sequence, role, partial, idle_records: 0, closed: false };
    Opener::from_parts(parts).unwrap()
}

fn payload() -> Vec<u8> {
    (0..50).collect()
}

#[test]
fn keys_follow_from_the_traffic_secrets() {
    for (of, key, iv) in [(CLIENT_SECRET, CLIENT_KEY, CLIENT_IV), (SERVER_SECRET, SERVER_KEY, SERVER_IV)] {
        let material = secret(of).key_material().unwrap();
        assert_eq!(material.key(), bytes(key));
        assert_eq!(material.iv[..], bytes(iv));
    }
}

#[test]
fn published_records_open() {
    // The server's first record is a ticket.
    let client = (CLIENT_SECRET, 0, Role::Server, CLIENT_DATA, CLIENT_ALERT);
    let server = (SERVER_SECRET, 1, Role::Client, SERVER_DATA, SERVER_ALERT);
    for (secret, sequence, role, data, alert) in [client, server] {
        let mut opener = opener(secret, sequence, role);
        let mut record = bytes(data);
        assert_eq!(Opener::record_len(&record), Ok(Some(record.len())));
        assert_eq!(opener.open(&mut record), Ok(Opened::Data(HEADER_LEN..HEADER_LEN + 50)));
        assert_eq!(record[HEADER_LEN..HEADER_LEN + 50], payload());
        assert_eq!(opener.open(&mut bytes(alert)), Ok(Opened::CloseNotify));
    }
}

#[test]
fn sealed_records_are_the_published_ones() {
    for (of, sequence, data, alert) in
        [(CLIENT_SECRET, 0, CLIENT_DATA, CLIENT_ALERT), (SERVER_SECRET, 1, SERVER_DATA, SERVER_ALERT)]
    {
        let mut sealer =
            Sealer::from_parts(SealerParts { secret: secret(of), sequence, closed: false }).unwrap();
        let mut record = vec![0; 50 + OVERHEAD];
        record[HEADER_LEN..][..50].copy_from_slice(&payload());
        sealer.seal(&mut record).unwrap();
        assert_eq!(record, bytes(data));
        assert_eq!(sealer.alert(Alert::CLOSE_NOTIFY).unwrap()[..], bytes(alert));
    }
}
