//! A client that shows every byte, one request after the other on one connection.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Nothing here takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Client {
    address: SocketAddr,
    socket: Option<BufReader<TcpStream>>,
}

/// A whole response.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) events: bool,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            socket: None,
        }
    }

    /// The error says how the exchange broke.
    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> Result<Reply, String> {
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => self.connect().map_err(|error| error.to_string())?,
        };
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: fuzz\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let bytes = [head.as_bytes(), body].concat();
        let sent = socket.get_mut().write_all(&bytes);
        sent.map_err(|error| format!("sending: {error}"))?;
        let reply = read(&mut socket).map_err(|error| format!("reading the answer: {error}"))?;
        let (reply, closes) = reply;
        if !closes {
            self.socket = Some(socket);
        }
        Ok(reply)
    }

    fn connect(&self) -> std::io::Result<BufReader<TcpStream>> {
        let socket = TcpStream::connect(self.address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(BufReader::new(socket))
    }
}

fn read(socket: &mut BufReader<TcpStream>) -> std::io::Result<(Reply, bool)> {
    let status_line = line(socket)?;
    let status = status_line.get(9..12).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("{status_line:?}")))?;
    let (mut length, mut chunked, mut events, mut closes) = (0, false, false, false);
    loop {
        let header = line(socket)?.to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(": ").unwrap_or((&header, ""));
        match name {
            "content-length" => length = value.parse().map_err(std::io::Error::other)?,
            "transfer-encoding" => chunked = value == "chunked",
            "content-type" => events = value == "text/event-stream",
            "connection" => closes = value == "close",
            _ => {}
        }
    }
    let mut body = Vec::new();
    loop {
        if chunked {
            let size = line(socket)?;
            length = usize::from_str_radix(&size, 16).map_err(std::io::Error::other)?;
        }
        let start = body.len();
        body.resize(start + length, 0);
        socket.read_exact(&mut body[start..])?;
        if !chunked {
            break;
        }
        line(socket)?;
        if length == 0 {
            break;
        }
    }
    let reply = Reply {
        status,
        events,
        body,
    };
    Ok((reply, closes))
}

fn line(socket: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut line = String::new();
    if socket.read_line(&mut line)? == 0 {
        return Err(std::io::Error::other("the server closed"));
    }
    line.truncate(line.trim_end().len());
    Ok(line)
}
