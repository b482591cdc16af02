//! Under HTTP: where clients come in, how their bytes are wrapped, who they are.
//!
//! | File | Holds |
//! |---|---|
//! | `listen` | ports, unix sockets, sockets that a service manager opened |
//! | `socket` | one accepted socket, shared by the protocol library and its watchdog |
//! | `tls` | certificates, and their replacement while connections run |
//! | `proxies` | whose word about a client's address is taken |
//! | `opening` | a connection's first bytes: PROXY header, handshake |
//! | `dial` | connections that we open ourselves |

mod dial;
mod listen;
mod opening;
mod proxies;
mod socket;
mod tls;

pub(crate) use self::dial::{Client, client, why};
pub(crate) use self::listen::Listening;
pub use self::listen::{Activated, ListenAddress, ListenError, Listeners, activated};
pub(crate) use self::opening::{Opened, Stream, open};
pub use self::proxies::{Network, Proxies};
pub(crate) use self::socket::{RawStream, Socket};
pub use self::tls::{Tls, TlsFiles};
