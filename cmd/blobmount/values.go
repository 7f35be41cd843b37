package main

import (
	"errors"
	"fmt"
	"math"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// The types of flags that pflag does not have. Each Set is also what -o uses.
var (
	_ pflag.Value = (*sizeValue)(nil)
	_ pflag.Value = (*modeValue)(nil)
	_ pflag.Value = (*secondsValue)(nil)
	_ pflag.Value = (*durationValue)(nil)
	_ pflag.Value = (*idValue)(nil)
	_ pflag.Value = (*wordValue)(nil)
)

// sizeValue is a number of bytes; 0 means that the default is worked out when the mount starts.
type sizeValue int64

var sizeUnits = map[string]int64{
	"": 1, "b": 1,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
	"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
}

func (v *sizeValue) Set(s string) error {
	n, err := parseSize(s)
	if err == nil {
		*v = sizeValue(n)
	}
	return err
}

func (v *sizeValue) String() string {
	if *v == 0 {
		return ""
	}
	return formatSize(int64(*v))
}

func (*sizeValue) Type() string { return "SIZE" }

func parseSize(s string) (int64, error) {
	i := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if i < 0 {
		i = len(s)
	}
	n, err := strconv.ParseInt(s[:i], 10, 64)
	if err != nil {
		return 0, errors.New("must be a number of bytes with an optional unit, such as 512MiB or 10GB")
	}
	unit := strings.ToLower(strings.TrimSpace(s[i:]))
	factor, ok := sizeUnits[unit]
	switch {
	case !ok && len(unit) == 1 && strings.Contains("kmgt", unit):
		// tmpfs and fio mean the binary unit, dd and disks the decimal one.
		u := strings.ToUpper(unit)
		return 0, fmt.Errorf("unit %s is ambiguous: write %siB (powers of 1024) or %sB (powers of 1000)", u, u, u)
	case !ok:
		return 0, errors.New("unit must be one of KiB, MiB, GiB, TiB, KB, MB, GB, TB")
	case n == 0:
		return 0, errors.New("must be larger than 0")
	case n > math.MaxInt64/factor:
		return 0, errors.New("is too large")
	}
	return n * factor, nil
}

// formatSize writes a size in the largest binary unit that gives a whole number.
func formatSize(n int64) string {
	for _, u := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if f := sizeUnits[strings.ToLower(u)]; n >= f && n%f == 0 {
			return strconv.FormatInt(n/f, 10) + u
		}
	}
	return strconv.FormatInt(n, 10)
}

// modeValue is a set of permission bits, in octal.
type modeValue uint32

func (v *modeValue) Set(s string) error {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o777 {
		return errors.New("must be octal permission bits from 0 to 0777")
	}
	*v = modeValue(n)
	return nil
}

func (v *modeValue) String() string { return fmt.Sprintf("%04o", uint32(*v)) }

func (*modeValue) Type() string { return "OCTAL" }

// secondsValue is a duration in seconds; "none" means for ever, and is kept as a negative one.
type secondsValue time.Duration

func (v *secondsValue) Set(s string) error {
	if strings.EqualFold(s, "none") {
		*v = -1
		return nil
	}
	f, err := strconv.ParseFloat(s, 64)
	// The bound is what a time.Duration holds, 292 years.
	if err != nil || math.IsNaN(f) || f < 0 || f >= math.MaxInt64/1e9 {
		return errors.New("must be a number of seconds from 0, or none")
	}
	*v = secondsValue(math.Round(f * 1e9))
	return nil
}

func (v *secondsValue) String() string {
	if *v < 0 {
		return "none"
	}
	return strconv.FormatFloat(time.Duration(*v).Seconds(), 'f', -1, 64)
}

func (*secondsValue) Type() string { return "SECONDS" }

// durationValue is a span of time from 0 on, in seconds or with units.
type durationValue time.Duration

func (v *durationValue) Set(s string) error {
	var seconds secondsValue
	if err := seconds.Set(s); err == nil && seconds >= 0 {
		*v = durationValue(seconds)
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return errors.New("must be a number of seconds from 0, or a span such as 90s or 5m")
	}
	*v = durationValue(d)
	return nil
}

func (v *durationValue) String() string { return durationText(time.Duration(*v)) }

func (*durationValue) Type() string { return "DURATION" }

// durationText writes a span without the zeros of time.Duration: 2m, not 2m0s.
func durationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// idValue is a user or group, by number or by name.
type idValue struct {
	id     uint32
	lookup func(name string) (string, error)
	kind   string
}

func userID(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return u.Uid, nil
}

func groupID(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", err
	}
	return g.Gid, nil
}

func (v *idValue) Set(s string) error {
	text := s
	if s == "" || strings.Trim(s, "0123456789") != "" {
		id, err := v.lookup(s)
		if err != nil {
			return fmt.Errorf("there is no %s of that name", v.kind)
		}
		text = id
	}
	n, err := strconv.ParseUint(text, 10, 32)
	// The largest number means "no change" to chown(2), so it cannot be an owner.
	if err != nil || n == math.MaxUint32 {
		return fmt.Errorf("must be the number or the name of a %s", v.kind)
	}
	v.id = uint32(n)
	return nil
}

func (v *idValue) String() string { return strconv.FormatUint(uint64(v.id), 10) }

func (v *idValue) Type() string { return strings.ToUpper(v.kind) }

// wordValue is one of a few words.
type wordValue struct {
	word  string
	words []string
	name  string
}

func (v *wordValue) Set(s string) error {
	for _, w := range v.words {
		if strings.EqualFold(w, s) {
			v.word = w
			return nil
		}
	}
	return fmt.Errorf("must be one of %s", strings.Join(v.words, ", "))
}

func (v *wordValue) String() string { return v.word }

func (v *wordValue) Type() string { return v.name }

// countValue is a number from 0 on, or auto (negative), or off (0).
type countValue int

func (v *countValue) Set(s string) error {
	switch strings.ToLower(s) {
	case "auto":
		*v = -1
		return nil
	case "off":
		*v = 0
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return errors.New("must be auto, off or a number up to 65535")
	}
	*v = countValue(n)
	return nil
}

func (v *countValue) String() string {
	switch {
	case *v < 0:
		return "auto"
	case *v == 0:
		return "off"
	}
	return strconv.Itoa(int(*v))
}

func (v *countValue) Type() string { return "N" }
