//! What is no question and answer, and what goes wrong.

use super::*;

#[tokio::test]
async fn a_panic_over_one_query_ends_neither_the_listener_nor_the_others() {
    let socket = Arc::new(UdpSocket::bind(loopback()).await.unwrap());
    let address = socket.local_addr().unwrap();
    let registry = isthmus_rt::metrics::Registry::default();
    let (state, metrics) = (State::new(Options::default()), Metrics::register(&registry));
    let handler = Arc::new(Handler::new(state, pod(), Config::default(), &Sockets::host(), metrics));
    let (poison, good) = (plain("poison.example.com", 1), plain("web", 1));
    let decide = |_: &Handler, message: &[u8]| match message {
        message if message == plain("poison.example.com", 1) => panic!("on purpose"),
        message => Outcome::Answer(message.to_vec()),
    };
    let (_drain, watch) = drain::channel();
    let tasks = Tasks::new("test");
    tasks.spawn("udp", udp_loop(socket, handler, decide, watch, tasks.clone()));
    let client = UdpSocket::bind(loopback()).await.unwrap();
    client.connect(address).await.unwrap();
    let mut buffer = [0; 512];
    for _ in 0..3 {
        client.send(&poison).await.unwrap();
        let length = soon(client.recv(&mut buffer)).await.unwrap();
        assert_eq!((buffer[3], length), (0x82, poison.len()), "the one that asked is told that it failed");
        client.send(&good).await.unwrap();
        let length = soon(client.recv(&mut buffer)).await.unwrap();
        assert_eq!(buffer[..length], good);
    }
}

#[tokio::test]
async fn what_is_no_question_and_answer_is_passed_on_until_somebody_ends_it() {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let world = World::new(|config| config.upstream = vec![upstream]);
    // A zone transfer: many answers to one query. And an UPDATE, of which nothing is understood.
    let mut update = plain("example.com", 6);
    update[2] = 0x28;
    for query in [plain("example.com", 252), update] {
        let mut client = world.tcp().await;
        relay::write(&mut client, &query).await.unwrap();
        let (mut server, _) = soon(listener.accept()).await.unwrap();
        assert_eq!(soon(relay::read(&mut server)).await.unwrap().unwrap(), query);
        for answer in [&b"the first answer"[..], b"the second", b""] {
            relay::write(&mut server, answer).await.unwrap();
            assert_eq!(soon(relay::read(&mut client)).await.unwrap().unwrap(), answer);
        }
        // What the client says later goes there too, whatever it is.
        relay::write(&mut client, &plain("web", 1)).await.unwrap();
        assert_eq!(soon(relay::read(&mut server)).await.unwrap().unwrap(), plain("web", 1));
        drop(server);
        assert!(soon(relay::read(&mut client)).await.unwrap().is_none(), "the end is passed on");
    }
}
