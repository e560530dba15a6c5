// Package control is the daemon's control API: HTTP and JSON over a Unix socket, for the
// operator's command line and other programs on the same machine. docs/control-api.md describes
// it. The server knows the router only as a Backend.
//
// Who may use it is decided twice: by the mode of the socket (0660, root and one group), and by
// the peer credentials of each connection (SO_PEERCRED), so that a socket whose mode somebody
// loosened still serves nobody else.
package control
