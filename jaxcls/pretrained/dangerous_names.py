"""Names that appear in pickles of attacks, and never in pickles of checkpoints.

They start programs, run code, or access files and the network. jaxcls imports and calls nothing
that a pickle names, but it refuses a file with such a name, because the file was made to do harm in
other programs.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MODULES = _names(
    "_posixsubprocess _winapi asyncio.subprocess asyncio.unix_events bdb cProfile codeop ctypes "
    "distutils.spawn ensurepip ftplib http.client httplib idlelib importlib lib2to3 marshal "
    "multiprocessing.util nt numpy.testing os pdb pickle _pickle pip popen2 posix pty pydoc "
    "requests runpy shutil smtplib socket _socket ssl subprocess sys telnetlib timeit "
    "urllib.request urllib2 venv webbrowser xmlrpc zipimport"
)
_HARMLESS = _names(
    "nt.stat_result os._Environ os.stat_result os.terminal_size os.uname_result posix.stat_result "
    "posix.uname_result socket.AddressFamily socket.SocketKind sys.flags sys.version_info"
)
_BUILTINS = _names(
    "__import__ apply breakpoint compile delattr eval exec execfile file globals input locals open "
    "setattr vars"
)
_NAMES = _names(
    "_io.FileIO _io.open cloudpickle.loads code.InteractiveConsole code.InteractiveInterpreter "
    "code.interact codecs.open commands.getoutput commands.getstatusoutput dill.loads io.FileIO "
    "io.open joblib.load numpy.load pandas.read_pickle profile.run profile.runctx torch.hub.load "
    "torch.jit.load torch.load torch.serialization.load trace.Trace types.CodeType "
    "types.FunctionType"
)


def is_dangerous(module: str, name: str) -> bool:
    """Returns whether only an attack would name this; `name` may be dotted."""
    full = f"{module}.{name}"
    if full in _HARMLESS:
        return False
    # A dotted name can refer to what another module imported, such as argparse's "_os.system".
    *owners, last = name.split(".")
    places = [module, *(owner.strip("_") for owner in owners)]
    parts = {".".join(place.split(".")[:n]) for place in places for n in (1, 2)}
    in_builtins = not parts.isdisjoint({"builtins", "__builtin__", "builtin"})
    return full in _NAMES or not parts.isdisjoint(_MODULES) or (in_builtins and last in _BUILTINS)
