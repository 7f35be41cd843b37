package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unsafe"

	"blobmount/auth"
)

// A source may be the URL that the portal of Azure and azcopy show, with a SAS behind '?'. Everybody can read the
// arguments of all processes, so it is taken out of them as soon as they are parsed; the background process gets it
// by a pipe. What nothing can be done about is the moment before, and the history of a shell: the README says so.

// takeSAS takes the SAS of the source out of the arguments, or, in the background process, from the pipe.
func (m *mountCommand) takeSAS() error {
	src := &m.config.Source
	if m.secret != nil {
		defer m.secret.Close()
		text, err := io.ReadAll(m.secret)
		if err != nil || len(text) == 0 {
			return errors.New("the SAS token of the source did not arrive in the background process")
		}
		src.SAS, src.HasSAS = auth.NewSecret(string(text)), true
		return nil
	}
	if !src.HasSAS {
		return nil
	}
	raw := m.config.rawSource
	m.args = slices.Clone(m.args)
	for i, a := range m.args {
		if a == raw {
			m.args[i] = src.Verbatim
		}
	}
	if m.hide != nil {
		m.hide(raw)
	}
	m.config.rawSource = ""
	return nil
}

// pipeWith returns a pipe from which a process can read a short text: a pipe holds 64 KiB, or 4 KiB for a user who
// has very many (pipe(7)), and a SAS has some hundred bytes.
func pipeWith(text string) (*os.File, error) {
	const most = 4096
	if len(text) > most {
		return nil, fmt.Errorf("the SAS token of the source is longer than %d bytes: give it in AZURE_STORAGE_SAS_TOKEN", most)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if _, err := io.WriteString(w, text); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// hideArgument overwrites what stands behind the '?' of an argument of this process. The strings of os.Args lie where
// the kernel put them, and where /proc/PID/cmdline and ps read them, so that nothing but writing over them hides them.
// Only strings that are parts of this one change with it; TestSourceSAS looks at /proc/PID/cmdline.
func hideArgument(argument string) {
	for _, a := range os.Args {
		if a != argument {
			continue
		}
		_, query, ok := strings.Cut(a, "?")
		if !ok || query == "" {
			continue
		}
		for i, text := 0, unsafe.Slice(unsafe.StringData(query), len(query)); i < len(text); i++ {
			text[i] = 'X'
		}
	}
}
