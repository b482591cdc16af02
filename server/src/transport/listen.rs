//! Where clients come in: TCP ports, unix sockets, and sockets that a service manager opened.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener};

use super::{Socket, Tls};

/// What `--listen` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// `ADDR:PORT`.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            None => Ok(Self::Tcp(text.to_owned())),
            Some("") => Err("unix: wants a path, such as unix:/run/nemoserve/http.sock".into()),
            Some(path) => Ok(Self::Unix(path.into())),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("--listen {address}: {source}")]
pub struct ListenError {
    address: String,
    source: io::Error,
}

/// All doors of one server.
pub struct Listeners {
    pub(crate) all: Vec<Listening>,
    /// For those on TCP. Whoever reaches a unix socket is on this machine already.
    pub(crate) tls: Option<Arc<Tls>>,
}

impl From<TcpListener> for Listeners {
    fn from(listener: TcpListener) -> Self {
        Self {
            all: vec![Listening::Tcp(listener)],
            tls: None,
        }
    }
}

impl Listeners {
    /// The sockets that were handed over, and those at `addresses`. Unix sockets get `mode`.
    pub async fn open(
        activated: Vec<Activated>,
        addresses: &[ListenAddress],
        mode: u32,
    ) -> Result<Self, ListenError> {
        let mut all = Vec::new();
        for (nth, socket) in activated.into_iter().enumerate() {
            let fail = |source| ListenError {
                address: format!("(socket {nth} of the service manager)"),
                source,
            };
            all.push(socket.listen().map_err(fail)?);
        }
        for address in addresses {
            let opened = match address {
                ListenAddress::Tcp(address) => TcpListener::bind(address).await.map(Listening::Tcp),
                ListenAddress::Unix(path) => SocketFile::bind(path, mode)
                    .map(|(listener, file)| Listening::Unix(listener, Some(file))),
            };
            all.push(opened.map_err(|source| ListenError {
                address: address.to_string(),
                source,
            })?);
        }
        Ok(Self { all, tls: None })
    }

    /// With TLS on all TCP ports.
    #[must_use]
    pub fn with_tls(self, tls: Option<Arc<Tls>>) -> Self {
        Self { tls, ..self }
    }

    /// The first TCP port's address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.all.iter().find_map(Listening::address)
    }

    /// For people, and for whoever connects.
    pub fn urls(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let url = |listening: &Listening| match (listening.address(), listening) {
            (Some(address), _) => format!("{scheme}://{address}"),
            (None, Listening::Unix(_, Some(file))) => format!("unix:{}", file.path.display()),
            (None, _) => "a socket of the service manager".to_owned(),
        };
        self.all.iter().map(url).collect()
    }
}

/// One door.
pub(crate) enum Listening {
    Tcp(TcpListener),
    /// With the file that it leaves behind, unless somebody else made that.
    Unix(UnixListener, Option<SocketFile>),
}

impl Listening {
    fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Tokens are small and wanted at once.
                let _ = stream.set_nodelay(true);
                Ok(Socket::Tcp(stream))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok(Socket::Unix(stream))
            }
        }
    }
}

/// A socket that was open before this process began.
pub enum Activated {
    /// On a port.
    Tcp(std::net::TcpListener),
    /// With a path.
    Unix(std::os::unix::net::UnixListener),
}

impl Activated {
    fn listen(self) -> io::Result<Listening> {
        match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Listening::Tcp)
            }
            Self::Unix(listener) => {
                listener.set_nonblocking(true)?;
                let listener = UnixListener::from_std(listener)?;
                Ok(Listening::Unix(listener, None))
            }
        }
    }
}

/// Sockets that a service manager handed over. It takes the notice out of the environment, so it is
/// called before there are threads.
pub fn activated() -> Result<Vec<Activated>, String> {
    let mut handed = ListenFd::from_env();
    let mut taken = Vec::new();
    for nth in 0..handed.len() {
        let socket = match handed.take_tcp_listener(nth) {
            Ok(listener) => listener.map(Activated::Tcp),
            Err(_) => handed
                .take_unix_listener(nth)
                .map_err(|error| {
                    format!("socket {nth} of the service manager is no stream socket: {error}")
                })?
                .map(Activated::Unix),
        };
        taken.extend(socket);
    }
    Ok(taken)
}

/// The file of a unix socket; removed with this, if it is still the same.
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// Listens at `path`. A socket there that nobody listens on any more is replaced; anything else is
    /// left alone.
    fn bind(path: &Path, mode: u32) -> io::Result<(UnixListener, Self)> {
        make_way(path)?;
        // Nobody sees the socket under its name before its permissions are right.
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        make_way(&beside)?;
        let listener = UnixListener::bind(&beside)?;
        let moved = fs::set_permissions(&beside, fs::Permissions::from_mode(mode))
            .and_then(|()| fs::rename(&beside, path))
            .and_then(|()| fs::symlink_metadata(path));
        let metadata = moved.inspect_err(|_| drop(fs::remove_file(&beside)))?;
        let file = Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
        };
        Ok((listener, file))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode));
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "the socket's file stays behind");
        }
    }
}

/// Removes what a process left that has ended.
fn make_way(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let what = "there is a file of that name, and it is no socket";
            return Err(io::Error::new(ErrorKind::AlreadyExists, what));
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(
            ErrorKind::AddrInUse,
            "another process listens there",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        let metadata = fs::metadata(path).expect("it is there");
        metadata.permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn a_socket_nobody_listens_on_is_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("http.sock");
        let abandoned = std::os::unix::net::UnixListener::bind(&path).expect("free");
        drop(abandoned);
        let (listener, file) = SocketFile::bind(&path, 0o640).expect("nobody is there");
        assert_eq!(mode(&path), 0o640);
        let second = SocketFile::bind(&path, 0o640).map(drop);
        assert_eq!(second.expect_err("taken").kind(), ErrorKind::AddrInUse);
        drop((listener, file));
        assert!(!path.exists(), "the file goes with its socket");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("precious");
        fs::write(&path, "text").expect("writable");
        let bound = SocketFile::bind(&path, 0o660).map(drop);
        assert_eq!(bound.expect_err("a file").kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).expect("still there"), "text");
        let (_listener, file) = SocketFile::bind(&folder.path().join("s"), 0o600).expect("free");
        // Somebody else took the name: it is theirs to remove.
        fs::remove_file(&file.path).expect("there");
        fs::write(&file.path, "theirs").expect("writable");
        let path = file.path.clone();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn addresses_are_ports_or_paths() {
        let parsed = |text: &str| text.parse::<ListenAddress>();
        assert_eq!(
            parsed("127.0.0.1:1"),
            Ok(ListenAddress::Tcp("127.0.0.1:1".into()))
        );
        assert_eq!(
            parsed("unix:/run/x"),
            Ok(ListenAddress::Unix("/run/x".into()))
        );
        assert!(parsed("unix:").is_err());
    }
}
