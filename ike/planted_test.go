//go:build plantedbugs

package ike_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// plantedBug is a change of this package's source that breaks a rule. The source is changed for the
// compiler only (go test -overlay): nothing of it is in any binary but the one that is tested here.
type plantedBug struct {
	name  string
	edits []plantedEdit
	finds string // what the simulator must say; several with | between them
}

// plantedEdit replaces old, which must stand in the file exactly once.
type plantedEdit struct{ file, old, new string }

var plantedBugs = []plantedBug{
	{"the nonce comparison is inverted", []plantedEdit{
		{"create.go", "return bytes.Compare(lower(ni, nr), lower(r.ni, r.nr)) < 0", "return bytes.Compare(lower(ni, nr), lower(r.ni, r.nr)) > 0"},
	}, "lowest of the four nonces"},
	{"CREATE_CHILD_SA is carried out before authentication", []plantedEdit{
		{"auth_responder.go", "	if in.exchange != exchangeAuth {\n", `	if in.exchange == exchangeCreateChild {
		sa.peer = h.candidates[0].first
		if sa.peer == nil {
			sa.peer = sa.host.peers().anyPeer()
		}
		sa.goUp(&established{created: sa.now, localIDs: []Identity{{}}, remoteIDs: []Identity{{}}})
		if out := sa.onCreateChild(g, in); out != nil {
			g.respond(in, out)
		}
		return
	}
	if in.exchange != exchangeAuth {
`},
		{"peers.go", "func (p *PeerConfig) rounds() int", "func (s *peerSet) anyPeer() (p *PeerConfig) {\n\tfor _, p = range s.byName {\n\t}\n\treturn p\n}\n\nfunc (p *PeerConfig) rounds() int"},
	}, "rounds"},
	{"the IKE SA stands after the first round", []plantedEdit{
		{"auth_responder.go", "	if in.has(message.NotifyAnotherAuthFollows) {\n		out.notify", "	if in.has(message.NotifyAnotherAuthFollows) {\n\t\tsa.peer = h.candidates[0].first\n\t\tif sa.peer == nil {\n\t\t\tsa.peer = sa.host.peers().anyPeer()\n\t\t}\n\t\tsa.goUp(&established{created: sa.now, localIDs: []Identity{{}}, remoteIDs: []Identity{{}}})\n\t\tout.notify"},
		{"peers.go", "func (p *PeerConfig) rounds() int", "func (s *peerSet) anyPeer() (p *PeerConfig) {\n\tfor _, p = range s.byName {\n\t}\n\treturn p\n}\n\nfunc (p *PeerConfig) rounds() int"},
	}, "rounds"},
	{"a Delete is ignored when it crosses a rekey", []plantedEdit{
		{"inform.go", "	c := sa.est.byOut(spi)\n	if c == nil {", "	c := sa.est.byOut(spi)\n	if c != nil && c.rekeying != nil {\n\t\treturn 0, false\n\t}\n	if c == nil {"},
	}, "still has it"},
	{"a CHILD SA that the peer deleted before it was answered is made", []plantedEdit{
		{"create.go", "if slices.Contains(t.stillborn, k.spiOut) {", "if false {"},
	}, "no agreement"},
	{"the responder sends on the new CHILD SA at once", []plantedEdit{
		{"create.go", "		sa.est.replace(old, c)\n		old.dropAt = sa.now.Add(replacedFor)\n", "		sa.est.replace(old, c)\n\t\tsa.est.use(sa, c)\n		old.dropAt = sa.now.Add(replacedFor)\n"},
	}, "before anybody can receive on it"},
	{"a repeated request is answered anew", []plantedEdit{
		{"generation.go", "			sa.send(ev.path, g.resp)\n", "\t\t\tg.recvID--\n\t\t\tg.onRequest(ev)\n"},
	}, "twice with different content|the answer that is kept"},
	{"requests beyond the window are taken", []plantedEdit{
		{"generation.go", "	case g.recvID:\n", "	case g.recvID, g.recvID + 1, g.recvID + 2:\n\t\tg.recvID = ev.head.id\n"},
	}, "sends message ID"},
	{"our own window is not kept", []plantedEdit{
		{"generation.go", "for g.req == nil && len(g.queue) > 0", "for len(g.queue) > 0"},
	}, "the window is 1"},
	{"an IV is used twice", []plantedEdit{
		{"suite/protect.go", "iv := p.counter.Add(1)", "iv := p.counter.Add(1) | 1"},
	}, "IV"},
	{"a nonce is used twice", []plantedEdit{
		{"rekey_ike.go", "	if t.ni, err = sa.newNonce(); err != nil {", "	if t.ni, err = sa.newNonce(); g.recvID > 0 && err == nil {\n\t\tt.ni = make([]byte, len(t.ni))\n\t} else if err != nil {"},
	}, "nonce twice"},
	{"nobody asks whether the peer lives", []plantedEdit{
		{"child.go", "	return last.Add(every)\n", "	return time.Time{}\n"},
	}, "still holds"},
	{"a request is repeated for ever", []plantedEdit{
		{"generation.go", "	tries := cfg.Tries\n", "	tries := 1000 * cfg.Tries\n"},
	}, "still holds"},
	{"half-open IKE SAs are never forgotten", []plantedEdit{
		{"sa.go", "			sa.halfOpenExpired()\n", "\t\t\th.deadline = zeroTime\n"},
	}, "no agreement|still holds"},
	{"an SPI is not given back", []plantedEdit{
		{"create.go", "		sa.host.freeESPSPI(t.spi, t.id)\n		t.id = 0\n", "		t.id = 0\n"},
	}, "ESP"},
	{"what TEMPORARY_FAILURE answers is repeated at once", []plantedEdit{
		{"child.go", "	return min(maxRetryAfter, sa.peer.rekeyChild(), sa.peer.rekeyIKE())\n", "	return 0\n"},
	}, "datagrams in"},
	{"an IKE SA that ends puts CHILD SAs in another one's place", []plantedEdit{
		{"sa.go", "for _, c := range slices.Backward(slices.Clone(sa.est.children)) {", "for _, c := range slices.Clone(sa.est.children) {"},
	}, "before anybody can receive on it"},
	{"an IKE SA follows the source of its packets, with MOBIKE too", []plantedEdit{
		{"generation.go", "sa.est != nil && sa.mob != nil {", "false {"},
		{"generation.go", "	case sa.nat.remote && !sa.nat.local && p.Encap == sa.path.Encap:", "	case sa.mob != nil || sa.nat.remote && !sa.nat.local && p.Encap == sa.path.Encap:"},
	}, "section 3.5|section 3.7"},
	{"data goes to an address that the peer has not shown to get anything at", []plantedEdit{
		{"mobike.go", "	if !m.checking && p.Remote.Addr() != sa.path.Remote.Addr() {", "	if false {"},
	}, "section 3.7"},
	{"the answer to a check of an address is not tied to the address", []plantedEdit{
		{"mobike.go", "	case t.seq != sa.mob.seq:\n", "	case false:\n"},
	}, "section 3.7"},
	{"a cookie is not looked at", []plantedEdit{
		{"cookie.go", "	if subtle.ConstantTimeCompare(c[cookieInfoSize:], mac[:]) != 1 {", "	if subtle.ConstantTimeCompare(mac[:], mac[:]) != 1 {"},
		{"cookie.go", "	if age > 1 {", "	if age %= 2; age > 1 {"},
	}, "never returned a cookie"},
	{"a redirect is followed by whom it did not come from", []plantedEdit{
		{"redirect.go", "	if !bytes.Equal(nonce, h.ni) {", "	if bytes.Equal(nonce, nil) {"},
	}, "only an attacker sends it"},
	{"redirects are not counted", []plantedEdit{
		{"redirect.go", "	if len(r.times) >= maxRedirects {", "	if false {"},
	}, "from one gateway to the next"},
	{"two peers get one address", []plantedEdit{
		{"pool.go", "!p.reserved[a] && p.byAddr[a] == nil {\n", "!p.reserved[a] {\n\t\t\t\tp.next[i] = a\n"},
	}, "and to|has it"},
	{"an address is not given back", []plantedEdit{
		{"leases.go", "		if delete(h.users, b.id); len(h.users) == 0 {", "		if false {"},
	}, "still holds"},
	{"a TCP connection is not closed", []plantedEdit{
		{"tcp.go", "			sa.do(actCloseStream{s})\n", ""},
	}, "TCP connections"},
}

// TestPlantedBugs is the test of the test: the simulator finds each bug within 10,000 schedules.
func TestPlantedBugs(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	seed := regexp.MustCompile(`seed (\d+): .*`)
	for _, bug := range plantedBugs {
		t.Run(bug.name, func(t *testing.T) {
			tmp := t.TempDir()
			overlay := struct{ Replace map[string]string }{map[string]string{}}
			text := map[string]string{}
			for _, e := range bug.edits {
				name := filepath.Join(dir, e.file)
				if _, ok := text[name]; !ok {
					b, err := os.ReadFile(name)
					if err != nil {
						t.Fatal(err)
					}
					text[name] = string(b)
				}
				if n := strings.Count(text[name], e.old); n != 1 {
					t.Fatalf("%s has %q %d times, want once: plant the bug elsewhere", e.file, e.old, n)
				}
				text[name] = strings.Replace(text[name], e.old, e.new, 1)
				overlay.Replace[name] = filepath.Join(tmp, strings.ReplaceAll(e.file, "/", "_"))
			}
			for name, s := range text {
				if err := os.WriteFile(overlay.Replace[name], []byte(s), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			b, err := json.Marshal(overlay)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(tmp, "overlay.json")
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			binary := filepath.Join(tmp, "planted.test")
			if out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay", file, "-vet=off", "-o", binary, ".").CombinedOutput(); err != nil { //nolint:gosec // what stands here
				t.Fatalf("%v\n%s", err, out)
			}
			cmd := exec.CommandContext(t.Context(), binary, "-test.v", "-test.run", "^TestSimulator$", "-test.timeout", "5m") //nolint:gosec // made above
			cmd.Env = append(os.Environ(), "WARDGATE_SIM_N=10000", "WARDGATE_SIM_SEED=1", "WARDGATE_SIM_OUT=", "WARDGATE_SIM_PLANTED=1")
			out, err := cmd.CombinedOutput()
			found := seed.FindString(string(out))
			switch {
			case err == nil || !strings.Contains(string(out), "simulator: "):
				t.Errorf("10,000 schedules did not find it:\n%s", tail(string(out), 3000))
			case !slices.ContainsFunc(strings.Split(bug.finds, "|"), func(s string) bool { return strings.Contains(found, s) }):
				t.Errorf("found %q, want %q", found, bug.finds)
			default:
				t.Log(tail(found, 200), regexp.MustCompile(`simulator: \d+ schedules`).FindString(string(out)))
			}
		})
	}
}

func tail(s string, n int) string { return s[max(len(s)-n, 0):] }
