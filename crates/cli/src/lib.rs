//! The commands of tram: arguments, settings, command, printer.
