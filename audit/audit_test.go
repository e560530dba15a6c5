package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func clock() func() time.Time {
	var mu sync.Mutex
	t := time.Date(2026, 11, 22, 9, 0, 0, 123456789, time.UTC)
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		t = t.Add(time.Second)
		return t
	}
}

func open(t testing.TB, path string) *Log {
	t.Helper()
	l, err := Open(path, Options{Now: clock(), Sync: SyncNever, MaxSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func fill(t testing.TB, l *Log, n int) {
	t.Helper()
	for i := range n {
		err := l.Append(Record{Event: EventConnectionUp, Who: "b.devices.example", What: fmt.Sprintf("a-b %d", i), Result: ResultOK, Detail: map[string]string{"suite": "aes256gcm16", "x": "1"}})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func verify(t testing.TB, path string) Report {
	t.Helper()
	rep, err := VerifyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func TestLifeOfALog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path)
	if _, err := Open(path, Options{Now: clock()}); !errors.Is(err, ErrLocked) {
		t.Fatalf("second Open: %v", err)
	}
	fill(t, l, 3)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(Record{}); !errors.Is(err, ErrClosed) {
		t.Fatalf("Append after Close: %v", err)
	}
	l = open(t, path)
	fill(t, l, 2)
	l.Close()
	if rep := verify(t, path); rep.Break != nil || rep.Records != 5 || rep.First != 1 || rep.Last != 5 || rep.MissingHead {
		t.Errorf("%+v %+v", rep, rep.Break)
	}
	recs, err := Tail(path, 2)
	if err != nil || len(recs) != 2 || recs[1].Seq != 5 || recs[1].What != "a-b 1" {
		t.Errorf("%v, %v", recs, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path)
	const n = 5000
	fill(t, l, n)
	l.Close()
	rep := verify(t, path)
	if rep.Break != nil || len(rep.Files) < 3 || rep.Records != n+2*uint64(len(rep.Files)-1) {
		t.Fatalf("%+v %+v", rep, rep.Break)
	}
	recs, err := Tail(path, n)
	if err != nil || len(recs) != n || recs[n-1].Seq != rep.Last {
		t.Fatalf("%d records, %v", len(recs), err)
	}
	// the oldest file is gone: said, but no break; one in the middle: a break
	if err := os.Remove(rep.Files[0]); err != nil {
		t.Fatal(err)
	}
	if rep := verify(t, path); rep.Break != nil || !rep.MissingHead {
		t.Errorf("head gone: %+v", rep)
	}
	if err := os.Remove(rep.Files[len(rep.Files)-2]); err != nil {
		t.Fatal(err)
	}
	if rep := verify(t, path); rep.Break == nil || rep.Break.Kind != BreakMissing {
		t.Errorf("middle gone: %+v", rep.Break)
	}
}

func TestRotationKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l, err := Open(path, Options{Now: clock(), Sync: SyncNever, MaxSize: 1, Keep: 1})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, l, 5000)
	l.Close()
	if rep := verify(t, path); rep.Break != nil || len(rep.Files) != 2 || !rep.MissingHead {
		t.Errorf("%+v %+v", rep, rep.Break)
	}
}

// Whatever is done to the file shows (AUD-2).
func TestTampering(t *testing.T) {
	split := func(b []byte) [][]byte { return bytes.SplitAfter(b, []byte("\n")) }
	join := func(l ...[]byte) []byte { return bytes.Join(l, nil) }
	for _, c := range []struct {
		name string
		kind string
		f    func(l [][]byte) []byte
	}{
		{"changed field", BreakChanged, func(l [][]byte) []byte {
			return bytes.Replace(join(l...), []byte("a-b 2"), []byte("a-c 2"), 1)
		}},
		{"deleted", BreakMissing, func(l [][]byte) []byte { return join(append(l[:2:2], l[3:]...)...) }},
		{"first deleted and renumbered", BreakChain, func(l [][]byte) []byte {
			r, err := parseLine(trimNewline(l[1]))
			if err != nil {
				t.Fatal(err)
			}
			r.Seq, r.Prev = 1, genesis
			line, err := r.seal()
			if err != nil {
				t.Fatal(err)
			}
			r2, _ := parseLine(trimNewline(l[2]))
			r2.Seq = 2
			line2, _ := r2.seal()
			return join(append(line, '\n'), append(line2, '\n'))
		}},
		{"repeated", BreakOrder, func(l [][]byte) []byte { return join(append(append(l[:3:3], l[2]), l[3:]...)...) }},
		{"exchanged", BreakOrder, func(l [][]byte) []byte { return join(l[0], l[2], l[1], l[3], l[4]) }},
		{"replaced with a right hash", BreakChain, func(l [][]byte) []byte {
			r, err := parseLine(trimNewline(l[2]))
			if err != nil {
				t.Fatal(err)
			}
			r.Who = "somebody else"
			line, err := r.seal()
			if err != nil {
				t.Fatal(err)
			}
			return join(l[0], l[1], append(line, '\n'), l[3], l[4])
		}},
		{"foreign line", BreakForeign, func(l [][]byte) []byte { return join(l[0], []byte("{}\n"), l[1], l[2]) }},
		{"empty line", BreakForeign, func(l [][]byte) []byte { return join(l[0], []byte("\n"), l[1]) }},
		{"very long line", BreakForeign, func(l [][]byte) []byte {
			return join(l[0], bytes.Repeat([]byte("x"), 3*MaxLine), []byte("\n"), l[1])
		}},
		{"a second spelling of a field", BreakForeign, func(l [][]byte) []byte {
			// the hash fits the line, but the line says "who" twice
			line := bytes.Replace(trimNewline(l[1]), []byte(`"who":`), []byte(`"who":"x","who":`), 1)
			return join(l[0], rehash(line), []byte("\n"))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.jsonl")
			l := open(t, path)
			fill(t, l, 5)
			l.Close()
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, c.f(split(b)), 0o600); err != nil {
				t.Fatal(err)
			}
			rep := verify(t, path)
			if rep.Break == nil || rep.Break.Kind != c.kind {
				t.Errorf("%+v, want %s", rep.Break, c.kind)
			}
		})
	}
}

func rehash(line []byte) []byte {
	cut := len(line) - lineTail + len(hashField)
	return append(append(append([]byte(nil), line[:cut]...), hexSum(append(append([]byte(nil), line[:cut]...), `"}`...))...), `"}`...)
}

// A power loss at any octet of the last record is mended, and said.
func TestHalfWrittenLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path)
	fill(t, l, 3)
	l.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	start := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	for cut := start + 1; cut < len(whole); cut += 7 {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		// The head is written after the record is on the disk.
		if err := os.Remove(headPath(path)); err != nil {
			t.Fatal(err)
		}
		if rep := verify(t, path); !rep.Unfinished || rep.Records != 2 {
			t.Fatalf("cut at %d: %+v", cut, rep)
		}
		l := open(t, path)
		fill(t, l, 1)
		l.Close()
		rep := verify(t, path)
		recs, err := Tail(path, 2)
		if err != nil || rep.Break != nil || rep.Records != 4 || recs[0].Event != EventLogDamaged || recs[0].Detail["cut_off"] != strings.ToValidUTF8(string(whole[start:cut]), "�") {
			t.Fatalf("cut at %d: %+v %v %v", cut, rep, recs, err)
		}
	}
}

// The power fails again before the half-written line was reported: it is reported all the same.
func TestFragmentIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path)
	fill(t, l, 3)
	l.Close()
	if err := keepFragment(path, []byte(`{"seq":4,"ti`)); err != nil {
		t.Fatal(err)
	}
	l = open(t, path)
	l.Close()
	recs, err := Tail(path, 1)
	if err != nil || recs[0].Event != EventLogDamaged || recs[0].Detail["cut_off"] != `{"seq":4,"ti` {
		t.Fatalf("%+v, %v", recs, err)
	}
	if b, err := readFragment(path); err != nil || b != nil {
		t.Errorf("fragment left: %q, %v", b, err)
	}
	l = open(t, path)
	l.Close()
	if rep := verify(t, path); rep.Break != nil || rep.Records != 4 {
		t.Errorf("reported twice: %+v %+v", rep, rep.Break)
	}
}

// Records cut off the end, or a chain made anew, show by the head file; and a daemon that starts
// on such a log goes on, says so, and leaves the gap.
func TestCutOffEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path)
	fill(t, l, 5)
	l.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	each := bytes.SplitAfter(whole, []byte("\n"))
	for _, keep := range []int{0, 1, 4} {
		if err := os.WriteFile(path, bytes.Join(each[:keep], nil), 0o600); err != nil {
			t.Fatal(err)
		}
		if rep := verify(t, path); rep.Break == nil || rep.Break.Kind != BreakCut || rep.Break.Seq != uint64(keep) {
			t.Errorf("%d records kept: %+v", keep, rep.Break)
		}
	}
	l = open(t, path)
	fill(t, l, 1)
	l.Close()
	recs, err := Tail(path, 2)
	if err != nil || recs[0].Event != EventLogDamaged || recs[0].Seq != 6 || recs[0].Detail["last_found"] != "4" || recs[0].Detail["last_written"] != "5" {
		t.Fatalf("%+v, %v", recs, err)
	}
	if rep := verify(t, path); rep.Break == nil || rep.Break.Kind != BreakMissing || rep.Break.Seq != 4 {
		t.Errorf("the gap is gone: %+v", rep.Break)
	}

	// All records replaced by a chain that is right in itself.
	other := filepath.Join(t.TempDir(), "audit.jsonl")
	l = open(t, other)
	fill(t, l, 7)
	l.Close()
	forged, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, forged, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeFileHead(path, head{5, strings.Repeat("0", 64)}); err != nil {
		t.Fatal(err)
	}
	if rep := verify(t, path); rep.Break == nil || rep.Break.Kind != BreakChain {
		t.Errorf("%+v", rep.Break)
	}
	// A head file that is gone or unreadable proves nothing, and hides nothing else.
	for _, f := range []func() error{
		func() error { return os.WriteFile(headPath(path), []byte("x"), 0o600) },
		func() error { return os.Remove(headPath(path)) },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
		if rep := verify(t, path); rep.Break != nil || rep.Records != 7 {
			t.Errorf("%+v", rep.Break)
		}
	}
}

func writeFileHead(path string, h head) error {
	f, err := os.OpenFile(headPath(path), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeHead(f, h)
}

// Verifying while records are written and files rotated finds no break.
func TestVerifyWhileInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l, err := Open(path, Options{Now: clock(), Sync: SyncNever, MaxSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, l, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		fill(t, l, 4000)
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		if rep := verify(t, path); rep.Break != nil {
			t.Fatalf("%+v", rep.Break)
		}
	}
	l.Close()
}

// The power fails between the two steps of a rotation: the chain goes on.
func TestRotationCutShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path)
	fill(t, l, 3)
	l.Close()
	if err := os.Rename(path, fmt.Sprintf("%s.%020d", path, 3)); err != nil {
		t.Fatal(err)
	}
	l = open(t, path)
	fill(t, l, 1)
	l.Close()
	if rep := verify(t, path); rep.Break != nil || rep.Records != 4 || rep.First != 1 {
		t.Errorf("%+v %+v", rep, rep.Break)
	}
}

func TestOpenRefusesChangedEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path)
	fill(t, l, 3)
	l.Close()
	b, _ := os.ReadFile(path)
	i := bytes.LastIndex(b, []byte("a-b"))
	b[i] = 'x'
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{Now: clock()}); !errors.Is(err, ErrBroken) {
		t.Fatalf("got %v", err)
	}
}

func TestConcurrentAppend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l, err := Open(path, Options{Now: clock(), Sync: SyncInterval, SyncEvery: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { fill(t, l, 100) })
	}
	wg.Wait()
	l.Close()
	if rep := verify(t, path); rep.Break != nil || rep.Records != 800 {
		t.Errorf("%+v %+v", rep, rep.Break)
	}
}

// Text of peers cannot forge lines or records, and cannot make a record that does not verify.
func TestHostileText(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path)
	for _, s := range []string{"a\nb", "\x00\x1b[2J", `","hash":"`, "\xff\xfe", strings.Repeat("x", 1<<20), "<script>", "\u2028"} {
		if err := l.Append(Record{Event: EventAuthRefused, Who: s, What: s, Where: s, Result: ResultRefused, Detail: map[string]string{s: s, "k": s}}); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	if rep := verify(t, path); rep.Break != nil || rep.Records != 7 {
		t.Errorf("%+v %+v", rep, rep.Break)
	}
	recs, err := Tail(path, 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range recs {
		if h := r.Human(); strings.ContainsAny(h, "\n\x00\x1b") {
			t.Errorf("%q", h)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	r := Record{Seq: 1, Prev: genesis, Event: EventStarted, Result: ResultInfo, Detail: map[string]string{"a": "b"}}
	line, err := r.seal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseLine(b)
		if err != nil {
			return
		}
		again, err := r.seal()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("accepted %q, which is %q", b, again)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	l := open(b, filepath.Join(b.TempDir(), "audit.jsonl"))
	defer l.Close()
	b.ReportAllocs()
	for b.Loop() {
		fill(b, l, 1)
	}
}

func hexSum(b []byte) []byte {
	sum := sha256.Sum256(b)
	return []byte(hex.EncodeToString(sum[:]))
}
