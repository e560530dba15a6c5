// Package localsocket makes a Unix socket for root and one group, and says who is at the other end of it.
package localsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Listen makes the socket at path for root, the own user and one group (name or number; empty: none),
// whose number it returns for Peer.May (-1: none). A socket that a dead daemon left is replaced; one that answers is an
// error, for then another daemon runs.
func Listen(path, group string) (ln *net.UnixListener, gid int, err error) {
	if gid, err = Group(group); err != nil {
		return nil, 0, err
	}
	if err := clearPath(path); err != nil {
		return nil, 0, err
	}
	if ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
		return nil, 0, fmt.Errorf("listening at %s: %w", path, err)
	}
	// Until here the socket has the process's default mode; whoever connects is checked again.
	mode := fs.FileMode(0o600)
	if gid >= 0 {
		mode = 0o660
		err = os.Chown(path, -1, gid)
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("owner and mode of %s: %w", path, err), ln.Close())
	}
	return ln, gid, nil
}

// clearPath removes a socket at which nobody answers.
func clearPath(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s: expected nothing there, or the socket of an earlier run, came something that is no socket", path)
	}
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "unix", path)
	if err == nil {
		_ = c.Close() // it was for the question alone
		return fmt.Errorf("%s: expected nobody there, somebody answers: another daemon is running", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("looking who is at %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing an old socket: %w", err)
	}
	return nil
}

// Group looks a group up by name or number; it is -1 for the empty name.
func Group(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	id := name
	if g, err := user.LookupGroup(name); err == nil {
		id = g.Gid
	}
	n, err := strconv.ParseUint(id, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("expected a group that exists, came %q: create it (groupadd --system %s) or leave the key out", name, name)
	}
	return int(n), nil
}
