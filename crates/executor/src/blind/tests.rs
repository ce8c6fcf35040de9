use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

/// Everything that hyper would read of a connection on which these pieces arrive one by one.
async fn passed(pieces: &[&[u8]]) -> (String, Arc<Seal>) {
    let (mut client, server) = duplex(7);
    let (mut blind, seal) = Blind::new(server);
    let sending = async {
        for piece in pieces {
            client.write_all(piece).await.unwrap();
        }
        client.shutdown().await.unwrap();
    };
    let mut read = Vec::new();
    let (_, count) = tokio::join!(sending, blind.read_to_end(&mut read));
    count.unwrap();
    (String::from_utf8(read).unwrap(), seal)
}

fn sealed(seal: &Seal, secret: &str) -> String {
    format!("{}:{}", seal.word, Digest::of(secret.as_bytes()))
}

const SECRET: &str = "the-secret-of-the-first-sandbox";

#[tokio::test]
async fn a_secret_is_replaced_and_all_else_is_as_it_was() {
    let text = format!(
        "\r\nPOST /run HTTP/1.1\r\nHost: a\r\nAUTHORIZATION:  bearer {SECRET} \r\nContent-Length: 5\r\nX: y\r\n\r\nhello\
         GET /health HTTP/1.1\nAuthorization: Bearer {SECRET}\n\n\
         GET / HTTP/1.1\r\nAuthorization: Basic {SECRET}\r\n\r\n"
    );
    for size in [1, 3, 10, 64, 4096] {
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
        let (read, seal) = passed(&pieces).await;
        let digest = sealed(&seal, SECRET);
        let expected = format!(
            "POST /run HTTP/1.1\r\nHost: a\r\nAUTHORIZATION:  {digest} \r\nContent-Length: 5\r\nX: y\r\n\r\nhello\
             GET /health HTTP/1.1\nAuthorization: {digest}\n\n\
             GET / HTTP/1.1\r\nAuthorization: \r\n\r\n"
        );
        assert_eq!(read, expected, "in pieces of {size}");
        assert!(
            seal.shown(Some(&digest))
                .unwrap()
                .is(&Digest::of(SECRET.as_bytes()))
        );
    }
}

#[tokio::test]
async fn no_client_can_show_a_digest() {
    let digest = Digest::of(SECRET.as_bytes());
    let (_, seal) = passed(&[]).await;
    let (_, other) = passed(&[]).await;
    for shown in [
        digest.to_string(),
        format!("Bearer {digest}"),
        format!(":{digest}"),
        sealed(&other, SECRET),
    ] {
        assert!(seal.shown(Some(&shown)).is_none(), "{shown}");
    }
    assert!(seal.shown(None).is_none());
    // What is shown as a digest is a secret like any other.
    let text = format!("GET / HTTP/1.1\r\nAuthorization: Bearer {digest}\r\n\r\n");
    let (read, seal) = passed(&[text.as_bytes()]).await;
    assert!(read.contains(&sealed(&seal, &digest.to_string())), "{read}");
}

#[tokio::test]
async fn what_looks_like_a_head_in_a_body_is_a_body() {
    let body = format!("GET / HTTP/1.1\r\nAuthorization: Bearer {SECRET}\r\n\r\n");
    let text = format!(
        "POST /write_file HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}{body}",
        body.len()
    );
    let (read, seal) = passed(&[text.as_bytes()]).await;
    let (whole, next) = read.split_at(text.len() - body.len());
    assert_eq!(whole, &text[..whole.len()]);
    assert!(next.contains(&sealed(&seal, SECRET)), "{next}");
}

#[tokio::test]
async fn after_a_body_of_unclear_length_nothing_else_is_taken() {
    for header in [
        "Transfer-Encoding: chunked",
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: +3",
        "Content-Length: 3, 3",
        "Content-Length: 99999999999999999999999",
    ] {
        let head = format!("POST / HTTP/1.1\r\nAuthorization: Bearer {SECRET}\r\n{header}\r\n");
        let (read, seal) = passed(&[format!("{head}\r\n3\r\nabc\r\n0\r\n\r\n").as_bytes()]).await;
        let expected = head.replace(&format!("Bearer {SECRET}"), &sealed(&seal, SECRET));
        assert_eq!(
            read,
            format!("{expected}connection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        );
    }
}

#[tokio::test]
async fn what_is_no_head_is_refused_without_a_look() {
    let endless = vec![b'a'; HEAD_BYTES_MAX + 2];
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
    let odd = format!("Authorization: Bearer {SECRET}\r\n\r\n");
    let alone = format!("\r\n\rGET / HTTP/1.1\r\nAuthorization: Bearer {SECRET}\r\n\r\n");
    for text in [
        endless.as_slice(),
        many.as_bytes(),
        odd.as_bytes(),
        alone.as_bytes(),
    ] {
        let (read, _) = passed(&[text]).await;
        assert!(read.starts_with("x\r\n\r\n"), "{}", &read[..read.len().min(100)]);
        assert!(!read.contains(SECRET));
    }
    // Cut off in the middle: nothing.
    assert_eq!(passed(&[b"GET / HTTP/1.1\r\nAuthorization: Bea"]).await.0, "");
}

#[tokio::test]
async fn after_an_upgrade_bytes_are_bytes() {
    let (mut client, server): (DuplexStream, DuplexStream) = duplex(4096);
    let (mut blind, seal) = Blind::new(server);
    client
        .write_all(b"GET /terminal HTTP/1.1\r\nUpgrade: w\r\n\r\nearly")
        .await
        .unwrap();
    let mut head = [0; 38];
    blind.read_exact(&mut head).await.unwrap();
    assert!(head.ends_with(b"\r\n\r\n"));
    // Looked at before it is known that this is no head.
    let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), blind.read_u8());
    assert!(waiting.await.is_err());
    seal.upgrade();
    client.write_all(b"\n\nmore").await.unwrap();
    let mut bytes = [0; 11];
    blind.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"early\n\nmore");
}

proptest::proptest! {
    /// Whatever arrives, in whatever pieces: it ends, and a secret in a header does not get through.
    #[test]
    fn anything_may_arrive(
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "GET / HTTP/1.1\r\n", "\r\n", "\n", "Authorization: Bearer THE-SECRET\r\n", "Content-Length: 4\r\n",
            "Transfer-Encoding: chunked\r\n", "abcd", ":", "\0", "HTTP/1.1", "Connection: keep-alive\r\n",
        ]), 0..24),
        size in 1_usize..40,
    ) {
        let text = parts.concat();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
        let (read, _) = runtime.block_on(passed(&pieces));
        // The first head is what a client can be sure of. A header of another name is no place for the secret.
        let first = read.get(..end_of_head(read.as_bytes(), 0).unwrap_or(read.len())).unwrap_or_default();
        let told = first.lines().any(|line| line.starts_with("Authorization: Bearer THE-SECRET"));
        proptest::prop_assert!(!told, "{read}");
    }
}
