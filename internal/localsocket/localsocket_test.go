package localsocket

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // of a test
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // of a test
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // of a test
	p := From(With(context.Background(), s))
	if p == nil || p.Err != nil || int(p.UID) != os.Getuid() || int(p.GID) != os.Getgid() || int(p.PID) != os.Getpid() {
		t.Fatalf("the peer is this process, came %+v", p)
	}
	if !strings.Contains(p.String(), "pid ") {
		t.Errorf("for the record came %q", p)
	}

	other, _ := net.Pipe()
	if p := Of(other); p.Err == nil || p.May(0, 0) || p.String() != "" {
		t.Errorf("who is not at a Unix socket is nobody, came %+v", p)
	}
	if From(context.Background()).May(0, 0) {
		t.Error("no peer at all may do something")
	}
}

func TestMay(t *testing.T) {
	for name, c := range map[string]struct {
		p    *Peer
		gid  int
		want bool
	}{
		"root":                       {&Peer{}, -1, true},
		"own user":                   {&Peer{UID: 7, GID: 7}, -1, true},
		"another":                    {&Peer{UID: 8, GID: 8}, -1, false},
		"another, group":             {&Peer{UID: 8, GID: 8}, 9, false},
		"primary group":              {&Peer{UID: 8, GID: 9}, 9, true},
		"supplementary":              {&Peer{UID: 8, GID: 8, Groups: []uint32{3, 9}}, 9, true},
		"group 0 is not -1":          {&Peer{UID: 8, GID: 0}, -1, false},
		"root, but nobody is sure":   {&Peer{Err: errors.New("?")}, 0, false},
		"highest group is not -1":    {&Peer{UID: 8, GID: 1<<32 - 1}, -1, false},
		"highest group among others": {&Peer{UID: 8, GID: 8, Groups: []uint32{1<<32 - 1}}, -1, false},
	} {
		if got := c.p.May(7, c.gid); got != c.want {
			t.Errorf("%s: %v, expected %v", name, got, c.want)
		}
	}
}

func TestGroup(t *testing.T) {
	if n, err := Group(""); n != -1 || err != nil {
		t.Error(n, err)
	}
	if n, err := Group("root"); n != 0 || err != nil {
		t.Error(n, err)
	}
	if n, err := Group("4711"); n != 4711 || err != nil {
		t.Error(n, err)
	}
	for _, bad := range []string{"no such group", "-1", "4294967296"} {
		if _, err := Group(bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, gid, err := Listen(path, "")
	if err != nil || gid != -1 {
		t.Fatal(gid, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of a socket for root alone: %v %v", info.Mode(), err)
	}
	if _, _, err := Listen(path, ""); err == nil || !strings.Contains(err.Error(), "somebody answers") {
		t.Errorf("a second daemon: %v", err)
	}
	ln.SetUnlinkOnClose(false) // as a daemon that was killed
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	ln, gid, err = Listen(path, strconv.Itoa(os.Getgid()))
	if err != nil || gid != os.Getgid() {
		t.Fatalf("in the place of a dead one, with a group: %d %v", gid, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode of a socket for a group: %v %v", info.Mode(), err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Listen(path, ""); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file in its place: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file was touched: %v", err)
	}
	if _, _, err := Listen(filepath.Join(t.TempDir(), "s"), "no such group"); err == nil {
		t.Error("expected an error for a group that does not exist")
	}
}
