package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// baseImage is a CT image of 128 × 128 pixels (NEMA WG04, by way of Debian's python3-pydicom).
const baseImage = "/usr/lib/python3/dist-packages/pydicom/data/test_files/CT_small.dcm"

// dicomEnv: without it dcmtk waits for a delayed acknowledgement twice for each image.
var dicomEnv = []string{"TCP_NODELAY=1"}

// DICOMImage is what the comparison needs of a DICOM file.
type DICOMImage struct {
	SOPInstanceUID string // (0008,0018), names the image in the whole world
	PixelData      []byte // (7FE0,0010), as stored
}

// DICOM transfer syntaxes that are read (PS3.5 annex A).
const (
	implicitLE = "1.2.840.10008.1.2"
	explicitLE = "1.2.840.10008.1.2.1"
)

// DICOM tags used here.
const (
	tagTransferSyntax = 0x0002_0010
	tagSOPInstanceUID = 0x0008_0018
	tagPixelData      = 0x7FE0_0010
	tagItem           = 0xFFFE_E000
	tagItemEnd        = 0xFFFE_E00D
	tagSequenceEnd    = 0xFFFE_E0DD
	undefinedLength   = 0xFFFF_FFFF
)

// ParseDICOM reads an uncompressed little-endian DICOM file (PS3.10: 128 bytes of preamble,
// "DICM", file meta information, data set).
func ParseDICOM(file []byte) (*DICOMImage, error) {
	if len(file) < 132 || string(file[128:132]) != "DICM" {
		return nil, errors.New("dicom: no \"DICM\" after the preamble")
	}
	r := dicomReader{buf: file, off: 132, explicit: true} // the meta information is always explicit
	img := &DICOMImage{}
	syntax := ""
	for r.off < len(r.buf) {
		if syntax != "" && r.explicit && !r.inMeta() {
			switch syntax {
			case explicitLE:
			case implicitLE:
				r.explicit = false
			default:
				return nil, fmt.Errorf("dicom: transfer syntax %s: want uncompressed little endian", syntax)
			}
			syntax = ""
		}
		tag, value, err := r.element(0)
		if err != nil {
			return nil, err
		}
		switch tag {
		case tagTransferSyntax:
			syntax = strings.TrimRight(string(value), "\x00 ")
		case tagSOPInstanceUID:
			img.SOPInstanceUID = strings.TrimRight(string(value), "\x00 ")
		case tagPixelData:
			img.PixelData = value
		}
	}
	if img.SOPInstanceUID == "" || img.PixelData == nil {
		return nil, errors.New("dicom: file without SOP instance UID or pixel data")
	}
	return img, nil
}

type dicomReader struct {
	buf      []byte
	off      int
	explicit bool
}

// inMeta reports whether the next element belongs to the file meta information (group 2).
func (r *dicomReader) inMeta() bool {
	return r.off+2 <= len(r.buf) && binary.LittleEndian.Uint16(r.buf[r.off:]) == 2
}

func (r *dicomReader) take(n int) ([]byte, error) {
	if n < 0 || n > len(r.buf)-r.off {
		return nil, fmt.Errorf("dicom: element at offset %d is longer than the file", r.off)
	}
	b := r.buf[r.off : r.off+n]
	r.off += n
	return b, nil
}

// element reads one element; the value of a sequence of undefined length is skipped and nil.
func (r *dicomReader) element(depth int) (tag uint32, value []byte, err error) {
	head, err := r.take(8)
	if err != nil {
		return 0, nil, err
	}
	tag = uint32(binary.LittleEndian.Uint16(head))<<16 | uint32(binary.LittleEndian.Uint16(head[2:]))
	length := binary.LittleEndian.Uint32(head[4:])
	if r.explicit && tag>>16 != 0xFFFE {
		switch string(head[4:6]) {
		case "OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV":
			long, err := r.take(4)
			if err != nil {
				return 0, nil, err
			}
			length = binary.LittleEndian.Uint32(long)
		default:
			length = uint32(binary.LittleEndian.Uint16(head[6:]))
		}
	}
	if length != undefinedLength {
		value, err = r.take(int(length))
		return tag, value, err
	}
	if depth > 16 {
		return 0, nil, errors.New("dicom: sequences nested deeper than 16")
	}
	for {
		inner, _, err := r.element(depth + 1)
		if err != nil {
			return 0, nil, err
		}
		if inner == tagSequenceEnd || inner == tagItemEnd {
			return tag, nil, nil
		}
	}
}

// CTSeries makes a study of one series with n slices in a folder: copies of the base image, each
// with an object UID and an instance number of its own, and with pixels of its own, so that a
// slice that arrives in the place of another is noticed.
func CTSeries(ctx context.Context, dir string, n int) error {
	base, err := os.ReadFile(baseImage)
	if err != nil {
		return fmt.Errorf("the CT image of Debian's python3-pydicom: %w", err)
	}
	img, err := ParseDICOM(base)
	if err != nil {
		return err
	}
	at := bytes.Index(base, img.PixelData)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var wg sync.WaitGroup
	for range max(2, runtime.NumCPU()) {
		wg.Go(func() {
			for i := range next {
				slice := bytes.Clone(base)
				shift := 2 * i * 37 % len(img.PixelData) // two bytes a pixel
				copy(slice[at:], img.PixelData[shift:])
				copy(slice[at+len(img.PixelData)-shift:], img.PixelData[:shift])
				name := filepath.Join(dir, fmt.Sprintf("slice%03d.dcm", i))
				if err := os.WriteFile(name, slice, 0o644); err != nil {
					cancel(err)
					continue
				}
				// -gin: a new object UID; study and series stay those of the base image.
				out, err := exec.CommandContext(ctx, "dcmodify", "-nb", "-gin", "-m", "InstanceNumber="+strconv.Itoa(i), name).CombinedOutput()
				if err != nil {
					cancel(fmt.Errorf("dcmodify: %w: %s", err, lastLine(string(out))))
				}
			}
		})
	}
	for i := 1; i <= n && ctx.Err() == nil; i++ {
		next <- i
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

// StartStoreSCP runs a DICOM storage server in a namespace and waits until it listens.
func (l *Lab) StartStoreSCP(ctx context.Context, n *Netns, name, aet, dir string, port int) (*Process, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	// Files are written as received, bit for bit; no names are looked up: there is no DNS here.
	p, err := l.Start(n, name, dicomEnv, "storescp", "+B", "-dhl", "-aet", aet, "-od", dir, strconv.Itoa(port))
	if err != nil {
		return nil, err
	}
	return p, n.WaitListening(ctx, "tcp", port, p)
}

// WaitListening waits until a port is listened on in the namespace, by looking, not by connecting.
func (n *Netns) WaitListening(ctx context.Context, network string, port int, p *Process) error {
	want := fmt.Sprintf(":%04X ", port)
	return WaitFor(ctx, fmt.Sprintf("%s to listen on port %d", p.Name, port), 5*time.Second, func() error {
		if err := p.Running(); err != nil {
			return err
		}
		return n.Do(func() error {
			for _, file := range []string{network, network + "6"} {
				for _, line := range readLines("/proc/thread-self/net/" + file) {
					f := strings.Fields(line)
					// 0A: LISTEN for TCP; 07 for a UDP socket that is not connected.
					if len(f) > 3 && strings.HasSuffix(f[1]+" ", want) && (f[3] == "0A" || f[3] == "07") {
						return nil
					}
				}
			}
			return errors.New("not listening yet")
		})
	})
}

// SendStudy sends all images of a folder from a namespace with storescu.
func (n *Netns) SendStudy(ctx context.Context, dir, calledAET, host string, port int) error {
	cmd := n.Command(ctx, "storescu", "-aec", calledAET, "-to", "10", "-td", "20", "-ta", "20", host, strconv.Itoa(port), "+sd", dir)
	cmd.Env = append(os.Environ(), dicomEnv...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("storescu to %s port %d: %w: %s", host, port, err, lastLine(string(out)))
	}
	return nil
}

// StudyComparison is the result of [CompareStudies].
type StudyComparison struct {
	Images int   // compared, each found in both folders
	Bytes  int64 // of pixel data compared
}

// CompareStudies compares two folders of DICOM files: the same objects in both, with the same
// pixel data, byte for byte.
func CompareStudies(sent, received string) (StudyComparison, error) {
	var c StudyComparison
	a, err := readStudy(sent)
	if err != nil {
		return c, err
	}
	b, err := readStudy(received)
	if err != nil {
		return c, err
	}
	for uid, img := range a {
		got, ok := b[uid]
		if !ok {
			return c, fmt.Errorf("image %s was sent and has not arrived (%d sent, %d received)", uid, len(a), len(b))
		}
		if !bytes.Equal(img.PixelData, got.PixelData) {
			return c, fmt.Errorf("image %s arrived with other pixel data", uid)
		}
		c.Images++
		c.Bytes += int64(len(img.PixelData))
	}
	if len(b) != len(a) {
		return c, fmt.Errorf("%d images received, %d sent", len(b), len(a))
	}
	return c, nil
}

func readStudy(dir string) (map[string]*DICOMImage, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	study := make(map[string]*DICOMImage, len(files))
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		img, err := ParseDICOM(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		if study[img.SOPInstanceUID] != nil {
			return nil, fmt.Errorf("%s: a second image with UID %s", f.Name(), img.SOPInstanceUID)
		}
		study[img.SOPInstanceUID] = img
	}
	return study, nil
}
