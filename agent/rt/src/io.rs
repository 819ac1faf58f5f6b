//! Forwarding for types that wrap a byte stream: the methods of `AsyncRead` and `AsyncWrite` that such a type passes on to
//! the stream inside, as macros to be used in the body of its impl. Methods that differ are written by hand beside them.
//!
//! Both macros take the name of the field that is wrapped, and optionally methods of the wrapper:
//!
//! * `before = method`: `fn(&mut self) -> io::Result<()>`, called first; its error is returned instead of forwarding;
//! * `on_error = method`: `fn(&self, &io::Error)`, called with every error that the wrapped stream returns.
//!
//! ```
//! use tokio::io::{AsyncRead, AsyncWrite};
//!
//! struct Wrapper<S> {
//!     io: S,
//! }
//!
//! impl<S: AsyncRead + Unpin> AsyncRead for Wrapper<S> {
//!     isthmus_rt::io::forward_read!(io);
//! }
//!
//! impl<S: AsyncWrite + Unpin> AsyncWrite for Wrapper<S> {
//!     isthmus_rt::io::forward_write!(io);
//!     isthmus_rt::io::forward_shutdown!(io);
//! }
//! ```

#[doc(hidden)]
pub use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use crate::{forward_read, forward_shutdown, forward_write};

/// `AsyncRead::poll_read`; see [`crate::io`].
#[macro_export]
macro_rules! forward_read {
    ($io:tt) => {
        fn poll_read(
            mut self: ::std::pin::Pin<&mut Self>,
            cx: &mut ::std::task::Context<'_>,
            buf: &mut $crate::io::ReadBuf<'_>,
        ) -> ::std::task::Poll<::std::io::Result<()>> {
            $crate::io::AsyncRead::poll_read(::std::pin::Pin::new(&mut self.$io), cx, buf)
        }
    };
}

/// The methods of `AsyncWrite` except `poll_shutdown`; see [`crate::io`].
#[macro_export]
macro_rules! forward_write {
    ($io:tt $(, before = $before:ident)? $(, on_error = $on_error:ident)?) => {
        fn poll_write(
            mut self: ::std::pin::Pin<&mut Self>,
            cx: &mut ::std::task::Context<'_>,
            buf: &[u8],
        ) -> ::std::task::Poll<::std::io::Result<usize>> {
            $(self.$before()?;)?
            let written = $crate::io::AsyncWrite::poll_write(::std::pin::Pin::new(&mut self.$io), cx, buf);
            $(if let ::std::task::Poll::Ready(Err(error)) = &written {
                self.$on_error(error);
            })?
            written
        }

        fn poll_write_vectored(
            mut self: ::std::pin::Pin<&mut Self>,
            cx: &mut ::std::task::Context<'_>,
            bufs: &[::std::io::IoSlice<'_>],
        ) -> ::std::task::Poll<::std::io::Result<usize>> {
            $(self.$before()?;)?
            let io = ::std::pin::Pin::new(&mut self.$io);
            let written = $crate::io::AsyncWrite::poll_write_vectored(io, cx, bufs);
            $(if let ::std::task::Poll::Ready(Err(error)) = &written {
                self.$on_error(error);
            })?
            written
        }

        fn is_write_vectored(&self) -> bool {
            $crate::io::AsyncWrite::is_write_vectored(&self.$io)
        }

        fn poll_flush(
            mut self: ::std::pin::Pin<&mut Self>,
            cx: &mut ::std::task::Context<'_>,
        ) -> ::std::task::Poll<::std::io::Result<()>> {
            $(self.$before()?;)?
            let flushed = $crate::io::AsyncWrite::poll_flush(::std::pin::Pin::new(&mut self.$io), cx);
            $(if let ::std::task::Poll::Ready(Err(error)) = &flushed {
                self.$on_error(error);
            })?
            flushed
        }
    };
}

/// `AsyncWrite::poll_shutdown`; see [`crate::io`].
#[macro_export]
macro_rules! forward_shutdown {
    ($io:tt $(, before = $before:ident)? $(, on_error = $on_error:ident)?) => {
        fn poll_shutdown(
            mut self: ::std::pin::Pin<&mut Self>,
            cx: &mut ::std::task::Context<'_>,
        ) -> ::std::task::Poll<::std::io::Result<()>> {
            $(self.$before()?;)?
            let shut = $crate::io::AsyncWrite::poll_shutdown(::std::pin::Pin::new(&mut self.$io), cx);
            $(if let ::std::task::Poll::Ready(Err(error)) = &shut {
                self.$on_error(error);
            })?
            shut
        }
    };
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    struct Guarded {
        io: DuplexStream,
        closed: bool,
        errors: std::cell::Cell<u32>,
    }

    impl Guarded {
        fn ensure_open(&mut self) -> io::Result<()> {
            if self.closed { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
        }

        fn count(&self, _: &io::Error) {
            self.errors.set(self.errors.get() + 1);
        }
    }

    impl AsyncRead for Guarded {
        forward_read!(io);
    }

    impl AsyncWrite for Guarded {
        forward_write!(io, before = ensure_open, on_error = count);
        forward_shutdown!(io, before = ensure_open, on_error = count);
    }

    #[tokio::test]
    async fn forwards_until_the_check_fails_and_reports_errors_of_the_stream() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut guarded = Guarded { io: near, closed: false, errors: 0.into() };
        guarded.write_all(b"ping").await.unwrap();
        let mut buf = [0; 4];
        far.read_exact(&mut buf).await.unwrap();
        far.write_all(&buf).await.unwrap();
        guarded.read_exact(&mut buf).await.unwrap();
        assert_eq!((&buf, guarded.errors.get()), (b"ping", 0));
        drop(far);
        assert_eq!(guarded.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(guarded.errors.get(), 1);
        guarded.closed = true;
        assert_eq!(guarded.write(b"x").await.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(guarded.shutdown().await.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(guarded.errors.get(), 1, "an error of the check is not the stream's");
    }
}
